"""A draft model that is damaged, dies or runs out of cells, and sequences that leave and come again: answers stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.engine import Engine
from backends.messages import Failed, Generate, Sampling, TokenPrompt
from tests.gguf.driver import Outcome
from tests.gguf.test_draft_model import load, run
from tests.gguf.test_mtp import opened
from tests.models import canary_kv, canary_mtp
from tests.models.canary_kv import EXACT_CELLS, prompt

pytestmark = pytest.mark.engine

COLD = Sampling(temperature=0)
EXACT: dict[str, Any] = {"kv_type": EXACT_CELLS}


def asked(name: str, tokens: list[int], n_tokens: int = 40, **fields: Any) -> Generate:
    given: dict[str, Any] = {"sampling": COLD, "cache_prompt": False, "ignore_eos": True, "logprobs": 2} | fields
    return Generate(name, TokenPrompt(tokens), max_tokens=n_tokens, **given)


JOBS = [asked(str(n), prompt(60 + n, 20 + 61 * n)) for n in range(3)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return canary_kv.build(tmp_path_factory.mktemp("hostile") / "model.gguf", "full")


@pytest.fixture(scope="module")
def small(target: Path) -> Path:
    return canary_kv.build(target.with_name("small.gguf"), "full", noise=0.02)


@pytest.fixture(scope="module")
def plain(target: Path) -> Iterator[Engine]:
    engine = load("gguf", target, "off", **EXACT)
    yield engine
    engine.close()


def same(told: list[Outcome], expected: list[Outcome], *, within: float = 0.0) -> None:
    """`within`: cells of a pool lie elsewhere when they come again, and attention adds in their order."""
    for one, other in zip(told, expected, strict=True):
        assert [entry.bytes for entry in one.logprobs()] == [entry.bytes for entry in other.logprobs()]
        values = [entry.logprob for entry in other.logprobs()]
        assert [entry.logprob for entry in one.logprobs()] == pytest.approx(values, abs=within, rel=0)
        assert one.finished.completion_tokens == other.finished.completion_tokens


def test_a_draft_model_whose_weights_are_no_numbers_drafts_no_more(
    target: Path, plain: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = canary_kv.build(tmp_path / "damaged.gguf", "full", noise=float("nan"))
    engine = load("gguf", target, "ngram", damaged, **EXACT)

    told, drafted = run(engine, JOBS)
    again, _ = run(engine, JOBS)
    engine.close()

    expected, _ = run(plain, JOBS)
    same(told, expected)
    same(again, expected)
    assert not drafted["drafted"]
    said = capfd.readouterr().err
    assert said.count("the draft model failed") == 1
    assert "its logits are no numbers" in said


def test_a_predicting_layer_that_gives_no_numbers_drafts_no_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = canary_mtp.build(tmp_path / "damaged.gguf", said=float("nan"))
    engines = opened(path, "off"), opened(path)

    (expected, _), (told, drafted) = (run(engine, [asked("a", [7, 8, 9])]) for engine in engines)
    for engine in engines:
        engine.close()

    assert [one.text() for one in told] == [one.text() for one in expected]
    assert not drafted["mtp drafted"]
    assert capfd.readouterr().err.count("the draft model failed") == 1


def test_a_draft_model_that_dies_in_the_middle_is_not_missed(
    target: Path, small: Path, plain: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = load("gguf", target, "ngram", small, **EXACT)
    outcomes = {job.id: Outcome(engine.add(engine.prepare(job))) for job in JOBS}
    n_accepted, died = 0, False
    while not engine.idle:
        step = engine.step()
        n_accepted += sum(n for _, n in step.drafted.values())
        for event in step.events:
            outcomes[event.id].events.append(event)
        if n_accepted > 10 and not died:
            assert min(outcome.deltas()[-1].finish_reason is None for outcome in outcomes.values())
            engine._speculation._model._context.stop_flag[0], died = 1, True  # its passes come to nothing from here
    engine.close()

    same(list(outcomes.values()), run(plain, JOBS)[0])
    assert died
    assert capfd.readouterr().err.count("the draft model failed") == 1


@pytest.mark.parametrize("n_trained", [1, 2, 48, 100])
def test_a_draft_model_of_a_shorter_context_drafts_as_far_as_it_goes(
    target: Path, small: Path, plain: Engine, n_trained: int, tmp_path: Path
) -> None:
    engine = load("gguf", target, "ngram", shortened(small, tmp_path / "short.gguf", n_trained), **EXACT)

    told, drafted = run(engine, JOBS)
    engine.close()

    same(told, run(plain, JOBS)[0])
    assert (drafted["drafted"] > 0) == (n_trained > 20), "the shortest prompt has 20 tokens"


def shortened(model: Path, target: Path, n_trained: int) -> Path:
    """The same model with another trained context in its header."""
    key = b"llama.context_length"
    whole = bytearray(model.read_bytes())
    at = whole.index(key) + len(key) + 4  # behind the name the value's type, then the value
    whole[at : at + 4] = n_trained.to_bytes(4, "little")
    target.write_bytes(whole)
    return target


def test_sequences_of_a_full_pool_are_preempted_and_draft_on(target: Path, small: Path, plain: Engine) -> None:
    engine = load("gguf", target, "ngram", small, parallel=4, kv_layout="unified", kv_tokens=512, **EXACT)
    jobs = [asked(str(n), prompt(20 + n, 120), 90) for n in range(4)]

    told, drafted = run(engine, jobs)
    engine.close()

    same(told, [run(plain, [job])[0][0] for job in jobs], within=1e-2)
    assert sum(outcome.finished.preemptions for outcome in told) > 0
    assert drafted["accepted"] > 20


def test_a_preempted_job_goes_on_in_another_engine_and_drafts_there(target: Path, small: Path, plain: Engine) -> None:
    first, second = (load("gguf", target, "ngram", small, context=n, **EXACT) for n in (512, 1024))
    job = msgspec.structs.replace(JOBS[1], logprobs=None)
    begun = Outcome(first.add(first.prepare(job)))
    while sum(delta.n_tokens for delta in begun.deltas()) < 13:
        begun.events += first.step().events
    (told,) = first.preempt(job.id)
    assert isinstance(told, Failed)
    assert told.resume is not None
    (rest,), drafted = run(second, [msgspec.structs.replace(job, resume=told.resume)])
    first.close()
    second.close()

    (expected,), _ = run(plain, [JOBS[1]])
    assert begun.text() + rest.text() == expected.text()
    assert rest.finished.completion_tokens == expected.finished.completion_tokens
    assert drafted["accepted"] > 0
