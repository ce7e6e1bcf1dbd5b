"""What only this backend has: quantised weights, a shared pool of its own, shortage of memory, kept conversations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import demo
from backends import registry
from backends.bnb.loading import load
from backends.engine import Engine, LoadError
from backends.messages import ChatPrompt, Generate, Sampling, Store, TextPrompt
from demo import evaluate
from tests.gguf.driver import Outcome, run, text_job
from tests.models import canary_p
from tests.present import present
from tests.quantize.conftest import make
from tests.specs import spec_of

pytestmark = pytest.mark.engine

GREEDY = Sampling(temperature=0.0)


def open_demo(path: Path = Path(demo.HF_PATH), **fields: Any) -> Engine:
    return load(spec_of("demo", "bnb", str(path), **{"context": 1024, "parallel": 8, **fields}), lambda _: None)


def questions(n: int, **fields: Any) -> list[Generate]:
    cases = evaluate.cases(heldout=True)
    return [
        Generate(f"q{i}", ChatPrompt(list(case.messages), list(case.tools or [])), GREEDY, max_tokens=32, **fields)
        for i, case in enumerate(cases[:: max(1, len(cases) // n)][:n])
    ]


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text() for outcome in outcomes]


@pytest.fixture(scope="module")
def answers_of_the_folder() -> list[Outcome]:
    folder = open_demo()
    outcomes = [run(folder, [job])[0] for job in questions(100, logprobs=5)]
    folder.close()
    return outcomes


@pytest.mark.parametrize("kind", ["F16", "F32"])
def test_a_folder_says_what_its_gguf_says(answers_of_the_folder: list[Outcome], tmp_path: Path, kind: str) -> None:
    """ggml rounds activations to F16 before it multiplies by F16 weights, so only F32 is the same arithmetic."""
    path = Path(demo.GGUF_PATH) if kind == "F16" else make(Path(demo.HF_PATH), tmp_path, "F32", name="demo").written[0]
    jobs = questions(100, logprobs=5)
    spec = spec_of("demo", "gguf", str(path), context=1024, parallel=1, threads=1)
    file = registry.engine_of("gguf")(spec, lambda _: None)
    ours = answers_of_the_folder
    theirs = [run(file, [job])[0] for job in jobs]
    file.close()

    off = [
        abs(present(one.logprob) - present(other.logprob))
        for mine, its in zip(ours, theirs, strict=True)
        for one, other in zip(mine.logprobs()[0].top, its.logprobs()[0].top, strict=True)
    ]
    assert len(jobs) == 100
    assert texts(ours) == texts(theirs)
    assert sum(error < 0.01 for error in off) >= (0.98 if kind == "F16" else 1.0) * len(off)
    assert max(off) < 0.03


@pytest.mark.parametrize("quantization", ["none", "bnb-4bit", "bnb-8bit"])
def test_a_batch_says_what_each_says_alone(quantization: str) -> None:
    engine = open_demo(options={"quantization": quantization})
    jobs = questions(24)

    alone = [run(engine, [job])[0] for job in jobs]
    together = [outcome for at in range(0, 24, 8) for outcome in run(engine, jobs[at : at + 8])]
    engine.close()

    assert texts(together) == texts(alone)


@pytest.fixture
def small_pool(canary_folder: Path) -> Iterator[Engine]:
    spec = spec_of(
        "canary", "bnb", str(canary_folder), context=512, parallel=4, threads=1, kv_tokens=1024, kv_layout="unified"
    )
    engine = load(spec, lambda _: None)
    yield engine
    engine.close()


def test_a_pool_that_runs_full_preempts_and_fails_none(small_pool: Engine) -> None:
    jobs = [text_job(c * 200, max_tokens=250) for c in "abcd"]

    outcomes = run(small_pool, jobs)

    assert texts(outcomes) == [canary_p.expected_text(c, 250) for c in "abcd"]
    assert sum(outcome.finished.preemptions for outcome in outcomes) > 0


def test_a_new_worker_finds_what_the_last_one_left(tmp_path: Path, canary_folder: Path) -> None:
    store = Store(folder=str(tmp_path), max_bytes=32 << 20)
    prompt = "h" * 300

    def ask() -> Outcome:
        spec = spec_of("canary", "bnb", str(canary_folder), context=512, parallel=2, threads=1, store=store)
        engine = load(spec, lambda _: None)
        (outcome,) = run(engine, [Generate("j", TextPrompt(prompt), GREEDY, max_tokens=10)])
        engine.close()
        return outcome

    first, second = ask(), ask()

    assert first.text() == second.text() == canary_p.expected_text("h", 10)
    assert (first.finished.cached_tokens, second.finished.cached_tokens) == (0, 299)


def test_a_context_beyond_learned_positions_is_refused(tmp_path: Path) -> None:
    from tests.quantize.zoo import build

    folder = build("gpt2", tmp_path / "gpt2")

    with pytest.raises(LoadError, match=r"512 positions, context = 1024"):
        load(spec_of("gpt2", "bnb", str(folder), context=1024, parallel=1), lambda _: None)


def test_kv_types_of_llama_cpp_are_refused_by_name(canary_folder: Path) -> None:
    with pytest.raises(LoadError, match="kv_type q8_0 is for GGUF"):
        load(spec_of("c", "bnb", str(canary_folder), context=512, parallel=1, kv_type="q8_0"), lambda _: None)
