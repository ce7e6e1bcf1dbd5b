"""Servers whose data folder is their own, and batches over HTTP."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai.types import Batch

from tests.e2e.server import until
from tests.http.conftest import Server, settings

CHAT: Final = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


class Night:
    """A server that may die and come again."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self._config, self.folder, self._n = config, folder, 0
        self.start()

    def start(self) -> None:
        self._n += 1
        log = self.folder / f"{id(self)}-{self._n}.log"
        self.server = Server(self._config, log, XDG_DATA_HOME=str(self.folder), XDG_CACHE_HOME=str(self.folder))

    def model(self, name: str) -> dict[str, Any]:
        models = self.server.get("/v1/status", headers={"x-api-key": "sk-boss"}).json()["models"]
        return next(model for model in models if model["name"] == name)

    def kill(self) -> None:
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait(20)

    def client(self, key: str = "sk-plain") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.server.url + "/v1", api_key=key, max_retries=0, timeout=20)

    def begin(self, texts: Sequence[tuple[str, str]], client: openai.OpenAI | None = None, **fields: Any) -> Batch:
        """A batch of one chat for each model and text."""
        client = client or self.client()
        lines = [
            {"custom_id": f"id-{n}", "method": "POST", "url": CHAT, "body": chat(model, text)}
            for n, (model, text) in enumerate(texts)
        ]
        data = "".join(json.dumps(one) + "\n" for one in lines).encode()
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", **fields)

    def ended(self, batch: Batch, within_s: float = 30) -> Batch:
        """It, once it has ended."""
        client = self.client()
        until(lambda: client.batches.retrieve(batch.id).status in ENDED, within_s)
        return client.batches.retrieve(batch.id)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(one) for one in self.client().files.content(file_id).text.splitlines()]

    def counted(self, name: str) -> dict[str, float]:
        """Samples of a metric by their labels."""
        page = self.server.get("/metrics", headers={"x-api-key": "sk-boss"}).body.decode().splitlines()
        found = [line.removeprefix(name).rpartition(" ") for line in page if line.startswith(name + "{")]
        return {labels: float(value) for labels, _, value in found}


def chat(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def config_of(canary: Path) -> dict[str, Any]:
    """Two models, of which one answers one at a time, and keys."""
    config = settings(canary, admin_keys=["sk-boss"], api_keys=["sk-plain"])
    config["models"]["single"] = {**config["models"]["fake"], "parallel": 1, "aliases": []}
    config["keys"] = {
        "anna": {"key": "sk-anna", "requests_per_minute": 5, "models": ["fake"]},
        "ben": {"key": "sk-ben"},
    }
    return config


@pytest.fixture(scope="session")
def night(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """A server that lives as long as the tests of this folder."""
    made = Night(config_of(canary_path), tmp_path_factory.mktemp("night"))
    yield made
    assert made.server.stop() == 0, made.server.log
