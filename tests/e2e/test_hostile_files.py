"""Files that wait or never end, beside a model that is served: they cost their own model and nothing else."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import demo
from tests.e2e.server import serving
from tests.e2e.test_mutants import post

PLACES = (
    "modules.json",
    "generation_config.json",
    "tokenizer_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)


def folder(place: Path, name: str, make: str) -> Path:
    made = Path(shutil.copytree(demo.HF_PATH, place / f"{make}-{name}"))
    (made / name).unlink(missing_ok=True)
    if make == "pipe":
        os.mkfifo(made / name)
    else:
        (made / name).symlink_to("/dev/zero")
    return made


def capacity(url: str, model: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/v1/capacity?model={model}", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.engine
def test_pipes_and_devices_in_the_place_of_files_hold_up_no_other(tmp_path: Path) -> None:
    models: dict[str, Path | str] = {
        f"{make}-{n}": folder(tmp_path, name, make) for make in ("pipe", "zero") for n, name in enumerate(PLACES)
    }
    body = {"model": "good", "messages": [{"role": "user", "content": "hi " * 60_000}], "max_tokens": 1}
    with serving(tmp_path, models={**models, "good": demo.GGUF_PATH}) as server:
        with concurrent.futures.ThreadPoolExecutor(16) as many:
            told = list(many.map(lambda name: capacity(server.url, name), [*models] * 4))
            refused = list(many.map(lambda name: post(f"{server.url}/v1/models/{name}/load"), models))
        began = time.monotonic()
        status, said = post(f"{server.url}/v1/chat/completions", body)

        assert all(400 <= one < 600 for one in told)
        for name, (code, why) in zip(models, refused, strict=True):
            assert code >= 400, name
            assert "pipe" in why or "device" in why, (name, why)
        assert (status, "context" in said) == (400, True), said
        assert time.monotonic() - began < 10
        assert server.get("/health")["status"] == "ok"
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 10
