"""A server over the fake engine whose base is the demo's folder, and whose training process is a stand-in."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

import demo
from tests.e2e.server import until
from tests.http.conftest import Server, settings
from tests.models import lora

ENDED: Final = ("succeeded", "failed", "cancelled")


class School:
    """A server that may die and come again."""

    def __init__(self, config: dict[str, Any], folder: Path, adapter: Path) -> None:
        self.config, self.folder, self._adapter, self._n = config, folder, adapter, 0
        self.start()

    def start(self) -> None:
        self._n += 1
        self.server = Server(
            self.config,
            self.folder / f"{self._n}.log",
            XDG_DATA_HOME=str(self.folder),
            XDG_CACHE_HOME=str(self.folder),
            ONECARD_TEST_TRAINER="tests.tuning.trainer",
            ONECARD_TEST_ADAPTER=str(self._adapter),
        )

    def kill(self) -> None:
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait(20)

    def client(self, key: str = "sk-plain") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.server.url + "/v1",
            api_key=key,
            max_retries=0,
            timeout=20,
            _strict_response_validation=True,
        )

    def upload(self, first: str, n_examples: int = 3, client: openai.OpenAI | None = None, *, last: str = "yes") -> str:
        """A training file whose first message directs the stand-in, and whose last answer is `last`."""
        lines = [chat(first if n == 0 else f"question {n}") for n in range(n_examples)]
        lines[-1]["messages"][-1]["content"] = last
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return (client or self.client()).files.create(file=("train.jsonl", data), purpose="fine-tune").id

    def begin(self, first: str = "steps 4", client: openai.OpenAI | None = None, **fields: Any) -> FineTuningJob:
        client = client or self.client()
        file = self.upload(first, client=client)
        return client.fine_tuning.jobs.create(**{"model": "chat", "training_file": file, **fields})

    def job(self, job: FineTuningJob) -> dict[str, Any]:
        """It, with the fields that are ours."""
        return self.client().fine_tuning.jobs.retrieve(job.id).model_dump()

    def at_step(self, job: FineTuningJob, step: int, within_s: float = 20) -> None:
        def there() -> bool:
            found = self.job(job)
            assert found["status"] not in ("failed", "cancelled"), found["error"]
            return found["progress"] is not None and found["progress"]["step"] >= step

        until(there, within_s, what=f"step {step}")

    def ended(self, job: FineTuningJob, within_s: float = 30) -> dict[str, Any]:
        """It, once it has ended."""
        until(lambda: self.job(job)["status"] in ENDED, within_s, what=f"{self.job(job)}\n{self.server.log}")
        return self.job(job)

    def told(self, job: FineTuningJob) -> list[str]:
        """Messages of its events, the oldest first."""
        events = self.client().fine_tuning.jobs.list_events(job.id, limit=100)
        return [event.message for event in events][::-1]

    def steps(self, job: FineTuningJob) -> list[int]:
        """Those that were done, in their order, again and again where that was so."""
        return [int(line) for line in (self.home(job) / "steps.log").read_text().split()]

    def home(self, job: FineTuningJob) -> Path:
        return self.folder / "onecard" / "fine_tuning" / job.id

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get("/v1/status", headers={"x-api-key": "sk-boss"}).json()
        return found

    def models(self) -> list[str]:
        return [model.id for model in self.client().models.list()]

    def counted(self, name: str) -> dict[str, float]:
        page = self.server.get("/metrics", headers={"x-api-key": "sk-boss"}).body.decode().splitlines()
        found = [line.removeprefix(name).rpartition(" ") for line in page if line.startswith(name)]
        return {labels: float(value) for labels, _, value in found}


def chat(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def config_of(canary: Path, **training: Any) -> dict[str, Any]:
    config = settings(canary, admin_keys=["sk-boss"], api_keys=["sk-plain"])
    config["models"]["chat"] = {"path": str(demo.HF_PATH), "context": 256, "parallel": 2}
    config["training"] = training
    config["keys"] = {"anna": {"key": "sk-anna"}}
    return config


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.build_folder(tmp_path_factory.mktemp("adapter") / "made", 1)


@pytest.fixture(scope="session")
def school(canary_path: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    """A server that lives as long as the tests of this folder."""
    made = School(config_of(canary_path), tmp_path_factory.mktemp("school"), adapter)
    yield made
    assert made.server.stop() == 0, made.server.log
