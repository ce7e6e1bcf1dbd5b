"""A model that drafts for another one changes no answer, on either backend, and its faults end no answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends import registry
from backends.engine import Engine, LoadError
from backends.messages import (
    ChatPrompt,
    DraftFiles,
    Generate,
    JsonSchema,
    Sampling,
    SpeculationMode,
    TokenLogprob,
    TokenPrompt,
)
from tests.gguf.driver import Outcome, step_until_idle
from tests.models import canary_kv, canary_p
from tests.models.canary_kv import EXACT_CELLS, prompt
from tests.models.canary_p import CYCLE
from tests.specs import spec_of

pytestmark = pytest.mark.engine

N_TOKENS = 40


def run(engine: Engine, jobs: Sequence[Generate]) -> tuple[list[Outcome], Counter[str]]:
    """What became of jobs that begin together; tokens drafted, and those of them that came true."""
    outcomes, counts = {job.id: Outcome() for job in jobs}, Counter[str]()
    for job in jobs:
        prepared: Any = engine.prepare(job)
        outcomes[job.id].events += engine.add(prepared)
    while not engine.idle:
        step = engine.step()
        for event in step.events:
            outcomes[event.id].events.append(event)
        for drafter, (n_drafted, n_accepted) in step.drafted.items():
            name = "" if drafter == "model" else f"{drafter} "
            counts += Counter({f"{name}drafted": n_drafted, f"{name}accepted": n_accepted})
    step_until_idle(engine, outcomes)
    return [outcomes[job.id] for job in jobs], counts


def same(told: list[TokenLogprob], expected: list[TokenLogprob], *, exact: bool) -> None:
    """PyTorch's products round otherwise for several rows than for one."""
    assert [entry.bytes for entry in told] == [entry.bytes for entry in expected]
    within = 0.0 if exact else 1e-2
    assert [entry.logprob for entry in told] == pytest.approx([entry.logprob for entry in expected], abs=within, rel=0)


def load(backend: str, path: Path, mode: SpeculationMode, draft: Path | None = None, **fields: Any) -> Any:
    files = None if draft is None else DraftFiles("small", str(draft))
    given: dict[str, Any] = {"context": 512, "parallel": 3} | fields
    spec = spec_of("big", backend, path, threads=1, speculation=mode, draft=files, **given)
    return registry.engine_of(backend)(spec, lambda _: None)


@pytest.fixture(scope="module")
def pair(backend: str, canary_kv_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and one that agrees with it about as often as not."""
    folder = tmp_path_factory.mktemp("draft")
    if backend == "gguf":
        return canary_kv_model, canary_kv.build(folder / "draft.gguf", "full", noise=0.02)
    return canary_kv_model, canary_kv.build_folder(folder / "draft", noise=0.02)


@pytest.fixture(scope="module")
def engines(backend: str, pair: tuple[Path, Path]) -> Iterator[dict[str, Engine]]:
    kind: dict[str, Any] = {"kv_type": EXACT_CELLS if backend == "gguf" else "f32"}
    made = {"off": load(backend, pair[0], "off", **kind), "model": load(backend, pair[0], "ngram", pair[1], **kind)}
    yield made
    for engine in made.values():
        engine.close()


@pytest.fixture
def drafting(backend: str, pair: tuple[Path, Path]) -> Iterator[Engine]:
    """Of its own: a thousand answers of another test may have taught it that this draft does not pay."""
    engine = load(backend, pair[0], "ngram", pair[1], kv_type=EXACT_CELLS if backend == "gguf" else "f32")
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": Sampling(temperature=0)},
        {"sampling": Sampling(temperature=0, repetition_penalty=1.3, presence_penalty=1, logit_bias={9: 4.0})},
        {"sampling": Sampling(temperature=0.9, top_p=0.95, seed=7), "n": 2},
        {"sampling": Sampling(temperature=1.2, mirostat=2, mirostat_tau=4.0, seed=7, frequency_penalty=0.5)},
        {"sampling": Sampling(temperature=0), "stop": ["word3"], "cache_prompt": False},
    ],
    ids=["greedy", "penalties", "choices", "mirostat", "stop"],
)
def test_an_answer_is_the_same_to_the_last_bit_whatever_a_model_drafts(
    engines: dict[str, Engine], drafting: Engine, fields: dict[str, Any], backend: str, full_counts: bool
) -> None:
    counts, greedy = Counter[str](), fields["sampling"].temperature == 0
    for number in range((500 if greedy else 100) if full_counts and backend == "gguf" else 2):
        jobs = [
            Generate(f"{at}", TokenPrompt(prompt(number, 20 + 61 * at)), max_tokens=N_TOKENS, logprobs=2, **fields)
            for at in range(1 if fields.get("n") else 2)
        ]

        plain, none = run(engines["off"], jobs)
        told, drafted = run(drafting, jobs)

        for one, other, job in zip(plain, told, jobs, strict=True):
            for index in range(job.n):
                assert other.text(index) == one.text(index)
                same(other.logprobs(index), one.logprobs(index), exact=backend == "gguf")
                assert other.reason(index) == one.reason(index)
            assert other.finished.completion_tokens == one.finished.completion_tokens
        assert not none
        counts += drafted
    assert counts["drafted"] > 0
    assert counts["drafted"] > counts["accepted"] > 0 or len(fields) > 1 or fields["sampling"].temperature > 1


def test_what_a_model_drafts_is_held_against_the_schema_too(backend: str, demo_model: Path) -> None:
    asked = ChatPrompt([{"role": "user", "content": "What is the capital of France?"}])
    schema = JsonSchema('{"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}')
    job = Generate("j", asked, sampling=Sampling(temperature=0), max_tokens=60, constraint=schema)
    found = []
    for draft in (None, demo_model):
        engine = load(backend, demo_model, "ngram", draft, context=1024)
        (told,), drafted = run(engine, [job])
        engine.close()
        found.append(told)

    assert found[1].text() == found[0].text()
    assert set(json.loads(found[1].text())) == {"answer"}
    assert drafted["accepted"] > 0


def test_a_draft_begins_with_what_another_sequence_has_read(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, sampling, rows = prompt(5, 300), Sampling(temperature=0), list[int]()
    jobs = [
        Generate(f"{n}", TokenPrompt([*head, n]), max_tokens=60, sampling=sampling, ignore_eos=True) for n in (3, 4)
    ]
    plain, _ = run(engines["off"], jobs)
    drafting: Any = engines["model"]
    its = drafting._speculation._model._context
    decode = its.decode

    def counted(n_rows: int, **fields: Any) -> int:
        rows.append(n_rows)
        status: int = decode(n_rows, **fields)
        return status

    monkeypatch.setattr(its, "decode", counted)

    told, drafted = run(drafting, jobs)

    assert [one.text() for one in told] == [one.text() for one in plain]
    assert drafted["drafted"] > 0
    assert 300 <= sum(n for n in rows if n > 16) < 400, "the second one reads what the first has not"


def test_a_draft_model_is_a_part_of_the_pair_in_its_figures(engines: dict[str, Engine]) -> None:
    alone, both = engines["off"].ready(), engines["model"].ready()

    assert "draft" not in alone.parts
    assert both.parts["draft"] > 500_000
    assert both.measured_bytes == sum(both.parts.values())


def test_a_draft_model_with_another_vocabulary_is_refused_by_name(
    backend: str, pair: tuple[Path, Path], canary_model: Path
) -> None:
    with pytest.raises(
        LoadError, match=r"draft model small: it has another vocabulary: token \d+ is '.*' there and '.*' in"
    ):
        load(backend, pair[0], "auto", canary_model)


def test_a_draft_model_that_is_not_there_is_refused_by_name(backend: str, pair: tuple[Path, Path]) -> None:
    with pytest.raises(LoadError, match="draft model small"):
        load(backend, pair[0], "auto", pair[1].with_name("gone"))


def test_a_draft_model_that_cannot_take_tokens_back_is_refused(tmp_path: Path) -> None:
    target, draft = canary_kv.build(tmp_path / "a.gguf", "full"), canary_kv.build(tmp_path / "b.gguf", "state")

    with pytest.raises(LoadError, match="draft model small: it carries a running state"):
        load("gguf", target, "auto", draft)


def test_drafting_ends_where_the_draft_model_has_no_more_context(tmp_path: Path, canary_path: Path) -> None:
    short = canary_p.build(tmp_path / "short.gguf", metadata={"llama.context_length": 64})
    engine = load("gguf", canary_path, "ngram", short)
    job = Generate("j", TokenPrompt([CYCLE[1]]), max_tokens=200, sampling=Sampling(temperature=0))

    (told,), drafted = run(engine, [job])
    engine.close()

    assert told.text() == canary_p.expected_text(canary_p.PIECES[CYCLE[1]].decode(), 200)
    assert 40 < drafted["accepted"] < 64


def test_a_draft_model_that_fails_ends_the_drafting_and_not_the_answer(
    backend: str, canary_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = load(backend, canary_model, "ngram", canary_model)
    engine._speculation._model._slots.clear()  # what it knows of its cells is lost

    jobs = [Generate(f"{n}", TokenPrompt([CYCLE[n]]), max_tokens=30, sampling=Sampling(temperature=0)) for n in (1, 2)]
    told, drafted = run(engine, jobs)
    again, _ = run(engine, [Generate("again", jobs[0].prompt, max_tokens=30, sampling=Sampling(temperature=0))])
    engine.close()

    assert [one.text() for one in (*told, *again)] == [
        canary_p.expected_text(canary_p.PIECES[CYCLE[n]].decode(), 30) for n in (1, 2, 1)
    ]
    assert not drafted["drafted"]
    assert capfd.readouterr().err.count("the draft model failed") == 1
