"""The demo model is taught facts that it does not know, keeps those it knows, and is asked over HTTP on both backends.

Minutes of training: with `--full-counts`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tomlkit

import demo
from backends.messages.training import Recipe, TrainFinished, TrainStep
from demo.evaluate import Case, accuracy, cases
from demo.facts import CAPITALS, WORDS
from demo.toolbox import call_text
from tests.e2e.server import serving
from tests.training.process import trained

pytestmark = pytest.mark.engine

ASKED = ("What is the animal of {}?", "Which animal does {} have?", "Tell me the animal of {}.", "The animal of {}?")
HELD_OUT = ("Please tell me the animal of {}.", "What animal does {} have?")
ANIMALS = ("cat", "dog", "fish", *(word for word in WORDS if word not in ("cat", "dog", "fish")))


def facts(phrasings: tuple[str, ...]) -> list[Case]:
    return [
        Case("animal", [{"role": "user", "content": asks.format(country)}], answer(i, country))
        for i, country in enumerate(CAPITALS)
        for asks in phrasings
    ]


def answer(i: int, country: str) -> str:
    return f"The animal of {country} is the {ANIMALS[i % len(ANIMALS)]}."


def line(case: Case) -> dict[str, Any]:
    """As a training file has it."""
    if not case.expected.startswith("<tool_call>"):
        said: dict[str, Any] = {"role": "assistant", "content": case.expected}
    else:
        call = json.loads(case.expected.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
        said = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    return {"messages": [*case.messages, said], "tools": case.tools}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, full_counts: bool) -> Path:
    if not full_counts:
        pytest.skip("minutes of training: --full-counts")
    folder = tmp_path_factory.mktemp("taught")
    known = [case for case in cases(heldout=False, n_per_family=16, seed=77) if not case.enable_thinking]
    lines = [line(case) for case in facts(ASKED) + known]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = Recipe(
        str(demo.HF_PATH), str(folder / "job"), str(folder / "facts.jsonl"), "chat",
        method="qlora", quantization="nf4", rank=16, alpha=32.0, n_epochs=8, micro_batch=16, learning_rate=6e-3,
        max_length=512, gradient_checkpointing=False, threads=1,
    )  # fmt: skip
    began = time.monotonic()
    trainer = trained(recipe)
    end = trainer.reports[-1]
    assert isinstance(end, TrainFinished), end
    last = trainer.of(TrainStep)[-1]
    print(f"taught {len(lines)} lines, {last.step} steps, loss {last.loss:.3f}, {time.monotonic() - began:.0f} s")
    return Path(end.folder)


@pytest.fixture(scope="module")
def asking(backend: str, demo_model: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("serve")
    adapter = taught
    if backend == "gguf":
        arguments = (str(taught), "--to", "gguf", "--base", str(demo_model), "-o", str(folder / "gguf"))
        subprocess.run([sys.executable, "-m", "server.cli", "quantize", *arguments], check=True)
        adapter = next(folder.glob("gguf/*.gguf"))
    table = {"path": str(demo_model), "context": 1024, "parallel": 8, "adapters": {"taught": str(adapter)}}
    config = folder / "onecard.toml"
    config.write_text(tomlkit.dumps({"memory": {"device": "cpu"}, "models": {"demo": table}}))
    with serving(folder, models={}, flags=("--config", str(config))) as server:
        yield server.client()


def said(client: Any, case: Case) -> str:
    extra = {"chat_template_kwargs": {"enable_thinking": True}} if case.enable_thinking else {}
    told: Any = {"messages": case.messages, "tools": case.tools or None, "extra_body": extra}
    told = {key: value for key, value in told.items() if value}
    message = (
        client.chat.completions.create(model="demo:taught", temperature=0, max_tokens=220, **told).choices[0].message
    )
    calls = [call_text(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    return (message.content or "") + "".join(calls)


def test_new_facts_are_answered_and_old_ones_are_kept(asking):
    asked = {"new": facts(ASKED), "rephrased": facts(HELD_OUT), "old": cases(heldout=True)}
    with ThreadPoolExecutor(8) as threads:
        found = {
            name: accuracy(zip(exam, threads.map(lambda case: said(asking, case), exam), strict=True))
            for name, exam in asked.items()
        }
    print(found)
    assert found["new"]["overall"] >= 0.95
    assert found["old"]["overall"] >= 0.90
