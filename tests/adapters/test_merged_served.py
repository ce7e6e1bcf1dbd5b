"""`onecard quantize ADAPTER --base FOLDER`, served: a merged folder and a merged file answer as base and adapter do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import tomlkit

import demo
from tests.e2e.server import serving
from tests.models import lora

pytestmark = pytest.mark.engine
QUESTIONS = ("What is the capital of France?", "Who are you?", "Tell me a story.", "What is 2 + 3?")


def quantize(*arguments: object) -> str:
    command = [sys.executable, "-m", "server.cli", "quantize", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("merged")
    out, pirate = folder / "out", lora.build_folder(folder / "pirate", 1, strength=0.12)
    told = quantize(pirate, "--base", demo.HF_PATH, "--to", "hf,F32", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["pirate-F32.gguf", "pirate-hf"]
    assert f"serve it: onecard serve --model pirate={out / 'pirate-F32.gguf'}" in told
    models: dict[str, dict[str, Any]] = {
        "base": {"path": str(demo.HF_PATH), "adapters": {"pirate": str(pirate)}},
        "folder": {"path": str(out / "pirate-hf")},
        "file": {"path": str(out / "pirate-F32.gguf")},
    }
    tables = {name: {**table, "context": 512, "parallel": 4} for name, table in models.items()}
    config = folder / "onecard.toml"
    config.write_text(tomlkit.dumps({"memory": {"device": "cpu"}, "models": tables}))
    with serving(folder, models={}, flags=("--config", str(config))) as server:
        yield server.client()


def said(client: Any, model: str, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24)
    text: str = answer.choices[0].message.content
    return text


@pytest.mark.parametrize("merged", ["folder", "file"])
def test_it_answers_as_base_and_adapter_do(asking: Any, merged: str) -> None:
    wanted = [said(asking, "base:pirate", question) for question in QUESTIONS]
    plain = [said(asking, "base", question) for question in QUESTIONS]

    assert [said(asking, merged, question) for question in QUESTIONS] == wanted
    assert wanted != plain
