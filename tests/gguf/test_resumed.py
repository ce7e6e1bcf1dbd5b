"""A preempted job goes on in another engine of its model, and its text is what it would have been."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from backends import registry
from backends.engine import Engine, JobError
from backends.generation.bookmark import Bookmark
from backends.messages import Failed, Generate, JsonSchema, Sampling, Started, Store
from tests.gguf.driver import Outcome, run, text_job
from tests.specs import spec_of

pytestmark = pytest.mark.engine

COLD = Sampling(temperature=0)
QUESTION = "Tell me what a card is, and what it is good for. " * 8
SCHEMA = (
    '{"type":"object","properties":{"a":{"type":"string","maxLength":30},"b":{"type":"integer"}},"required":["a","b"]}'
)
JOBS = {
    "greedy": text_job("One. " + QUESTION, max_tokens=40, sampling=COLD, ignore_eos=True),
    "penalties": text_job(
        "Two. " + QUESTION,
        max_tokens=40,
        ignore_eos=True,
        sampling=Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.5, dry_multiplier=0.8),
    ),
    "a stop that may come": text_job(
        "Three. " + QUESTION, max_tokens=40, sampling=COLD, ignore_eos=True, stop=["e\x00", "a\x00"]
    ),
    "a schema": text_job("Four. " + QUESTION, max_tokens=40, sampling=COLD, constraint=JsonSchema(SCHEMA)),
}


OpenEngine = Callable[[int], Engine]


@pytest.fixture(scope="module")
def open_engine(backend: str, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> OpenEngine:
    """Engines of some context, all with one prefix cache."""
    store = Store(str(tmp_path_factory.mktemp("store")), 64 << 20)

    def opened(context: int) -> Engine:
        spec = spec_of("demo", backend, demo_model, context=context, parallel=2, threads=1, store=store)
        return registry.engine_of(backend)(spec, lambda _: None)

    return opened


@pytest.fixture(scope="module")
def before(open_engine: OpenEngine) -> Iterator[Engine]:
    engine = open_engine(512)
    yield engine
    engine.close()


@dataclass
class Begun:
    """A job that was preempted: its whole text when it was not, what it had said, and where it goes on."""

    whole: Outcome
    first: Outcome
    resume: bytes


@pytest.fixture(scope="module")
def begun(before: Engine) -> dict[str, Begun]:
    """All of them, before the engine that goes on looks into the prefix cache."""
    made = {}
    for name, job in JOBS.items():
        (whole,) = run(before, [replace(job, id="whole", cache_prompt=False)])
        first = until(before, job, 13)
        made[name] = Begun(whole, first, preempted(before, job))
    return made


@pytest.fixture(scope="module")
def after(begun: dict[str, Begun], open_engine: OpenEngine) -> Iterator[Engine]:
    engine = open_engine(1024)
    yield engine
    engine.close()


def until(engine: Engine, job: Generate, n_tokens: int) -> Outcome:
    """Run a job until it has said so much."""
    outcome = Outcome(list(engine.add(engine.prepare(job))))
    while sum(delta.n_tokens for delta in outcome.deltas()) < n_tokens:
        outcome.events += engine.step().events
    return outcome


def preempted(engine: Engine, job: Generate) -> bytes:
    (told,) = engine.preempt(job.id)
    assert isinstance(told, Failed)
    assert told.resume is not None
    while not engine.idle:
        engine.step()
    return told.resume


def preempted_after(engine: Engine, n_tokens: int) -> bytes:
    job = text_job("x", max_tokens=30, ignore_eos=True, sampling=COLD)
    until(engine, job, n_tokens)
    return preempted(engine, job)


@pytest.mark.parametrize("name", JOBS)
def test_the_text_is_what_it_would_have_been(after: Engine, begun: dict[str, Begun], name: str) -> None:
    whole, first, job = begun[name].whole, begun[name].first, replace(JOBS[name], resume=begun[name].resume)

    rest = Outcome(list(after.add(after.prepare(job))))
    n_computed = 0
    while not after.idle:
        step = after.step()
        n_computed += step.n_prefill
        rest.events += step.events

    assert first.text() + rest.text() == whole.text()
    assert rest.reason() == whole.reason()
    assert n_computed == 1  # the token that was chosen last and computed in no step
    assert not [event for event in rest.events if isinstance(event, Started)]
    assert rest.finished.completion_tokens == whole.finished.completion_tokens
    assert rest.finished.cached_tokens == first.started.cached_tokens
    assert rest.finished.preemptions == 1


def test_a_draw_without_a_seed_goes_on(before: Engine, after: Engine) -> None:
    job = text_job(QUESTION, max_tokens=20, ignore_eos=True, sampling=Sampling(temperature=0.7, top_p=0.9, min_p=0.05))
    until(before, job, 5)

    (rest,) = run(after, [replace(job, resume=preempted(before, job))])

    assert rest.finished.completion_tokens == 20


UNTOLD = {
    "a seed": {"sampling": Sampling(temperature=0.7, seed=3)},
    "mirostat": {"sampling": Sampling(temperature=0.7, mirostat=2)},
    "log-probabilities": {"sampling": COLD, "logprobs": 1},
    "choices": {"sampling": COLD, "n": 2},
}


@pytest.mark.parametrize("fields", UNTOLD.values(), ids=UNTOLD)
def test_what_does_not_follow_from_the_tokens_goes_on_to_its_end(before: Engine, fields: dict[str, object]) -> None:
    job = text_job(QUESTION, max_tokens=12, ignore_eos=True, **fields)
    outcome = until(before, job, 3)

    assert before.preempt(job.id) == []

    while not before.idle:
        outcome.events += before.step().events
    assert outcome.finished.completion_tokens == 12 * job.n


def test_one_that_has_not_begun_begins_anew(before: Engine, after: Engine) -> None:
    job = text_job(QUESTION + "?", max_tokens=4, ignore_eos=True, sampling=COLD)
    assert before.add(before.prepare(job)) == []

    assert preempted(before, job) == b""

    (outcome,) = run(after, [job])
    assert outcome.finished.preemptions == 0


def test_an_unknown_job_is_none(before: Engine) -> None:
    assert before.preempt("other") == []


def test_a_bookmark_that_fits_no_more_says_so(before: Engine) -> None:
    job = text_job("x", max_tokens=3, sampling=COLD)
    with pytest.raises(JobError, match="cannot be resumed"):
        before.prepare(replace(job, resume=b"\x00"))
    own = msgspec.msgpack.decode(preempted_after(before, 2), type=Bookmark)
    with pytest.raises(JobError, match="room for 1 tokens of an answer that has 2"):
        before.prepare(replace(job, max_tokens=1, resume=msgspec.msgpack.encode(own)))


def test_another_file_in_the_place_of_the_model_s_own_does_not_go_on(
    before: Engine, backend: str, demo_model: Path, tmp_path: Path
) -> None:
    """As where the configuration is read anew while a model that grows drains: its tokens mean something else there."""
    copied = tmp_path / demo_model.name
    (shutil.copytree if demo_model.is_dir() else shutil.copy2)(demo_model, copied)
    other = registry.engine_of(backend)(spec_of("demo", backend, copied, context=512, parallel=1, threads=1), print)
    job = text_job("x", max_tokens=30, sampling=COLD, resume=preempted_after(before, 3))

    try:
        with pytest.raises(JobError, match="files of its model were replaced"):
            other.prepare(job)
        before.prepare(job)
    finally:
        other.close()
