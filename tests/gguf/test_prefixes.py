"""Greedy texts are the same however much of the prompt was there already, wherever it was, and whatever else runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.engine import Engine
from backends.messages import Finished, KvLayout
from tests.gguf.driver import Outcome, run, step_until_idle
from tests.gguf.prefixes import Gold, generated, job, open_engine
from tests.models import canary_kv
from tests.models.canary_kv import EXACT_CELLS, KINDS, Kind, prompt

pytestmark = pytest.mark.engine

LAYOUTS: tuple[KvLayout, ...] = ("split", "unified")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    folder = tmp_path_factory.mktemp("canary-kv")
    return {kind: canary_kv.build(folder / f"{kind}.gguf", kind) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def alone(models: dict[Kind, Path], kind: Kind) -> Iterator[Gold]:
    engine = open_engine(models[kind], kv_type=EXACT_CELLS, parallel=1)
    yield Gold(engine)
    engine.close()


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> KvLayout:
    chosen: KvLayout = request.param
    return chosen


@pytest.fixture
def gold(alone: Gold, layout: KvLayout) -> Gold:
    """What the answers of `engine` are held against."""
    return replace(alone, exact=layout == "split")


@pytest.fixture
def engine(layout: KvLayout, models: dict[Kind, Path], kind: Kind, tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(models[kind], layout=layout, kv_type=EXACT_CELLS, store=tmp_path / "store")
    yield engine
    assert engine.idle
    engine.close()


def ask(engine: Engine, tokens: list[int], n_tokens: int = 24, **fields: object) -> Outcome:
    (outcome,) = run(engine, [job(tokens, n_tokens, logprobs=0, **fields)])
    return outcome


def test_the_same_prompt_again_says_the_same(engine: Engine, gold: Gold, kind: Kind) -> None:
    prompts = [prompt(seed, 40 + 30 * seed) for seed in range(4)]

    cold = [ask(engine, tokens) for tokens in prompts]
    warm = [ask(engine, tokens) for tokens in prompts]
    together = run(engine, [job(tokens, logprobs=0) for tokens in prompts])

    for outcomes in (cold, warm, together):
        for outcome, tokens in zip(outcomes, prompts, strict=True):
            gold.check(outcome, tokens)
            assert len(generated(outcome)) == 24
    assert [outcome.finished.cached_tokens for outcome in cold] == [0] * 4
    if kind == "full":
        assert [outcome.finished.cached_tokens for outcome in warm] == [len(tokens) - 1 for tokens in prompts]
    assert [o.started.cached_tokens for o in warm] == [o.finished.cached_tokens for o in warm]


def test_a_conversation_goes_on_from_where_it_was(engine: Engine, gold: Gold) -> None:
    tokens = prompt(1, 150)
    spoken = _ids(engine, tokens, 30)
    tokens += [*spoken, *prompt(2, 9)]

    outcome = ask(engine, tokens)

    gold.check(outcome, tokens)
    assert outcome.finished.cached_tokens == 150 + 30 - 1


def test_a_common_head_is_computed_once_by_prompts_that_come_together(engine: Engine, gold: Gold, kind: Kind) -> None:
    head = prompt(3, 200)
    prompts = [head + prompt(10 + seed, 7 + seed) for seed in range(4)]
    jobs = [job(tokens, logprobs=0) for tokens in prompts]
    outcomes = {each.id: Outcome() for each in jobs}
    for each in jobs:
        engine.add(engine.prepare(each))
    n_prefill = 0
    first_texts: list[set[str]] = []
    while not engine.idle:
        step = engine.step()
        n_prefill += step.n_prefill
        begun = {name for name, outcome in outcomes.items() if outcome.deltas()}
        for event in step.events:
            outcomes[event.id].events.append(event)
        first_texts.append({name for name, outcome in outcomes.items() if outcome.deltas()} - begun)

    for each, tokens in zip(jobs, prompts, strict=True):
        gold.check(outcomes[each.id], tokens)
    if kind == "full":
        assert n_prefill == 200 + 7 + 8 + 9 + 10
        assert sorted(outcomes[each.id].finished.cached_tokens for each in jobs) == [0, 200, 200, 200]
        assert set(outcomes) in first_texts, "none goes on alone from what all of them begin with"


def test_choices_of_one_prompt_and_prompts_like_it_say_the_same(engine: Engine, gold: Gold) -> None:
    tokens = prompt(4, 120)

    for n in (3, 6):
        (outcome,) = run(engine, [job(tokens, n=n)])
        text = outcome.text(0)
        assert [outcome.text(i) for i in range(n)] == [text] * n
    gold.check(ask(engine, tokens), tokens)


def test_a_prompt_that_leaves_while_choices_wait_for_it_is_kept_again(models: dict[Kind, Path], tmp_path: Path) -> None:
    engine = open_engine(models["full"], parallel=1, store=tmp_path)
    engine.add(engine.prepare(job(prompt(4, 120), 4, n=4, cache_prompt=False)))
    n_prefill = engine.step().n_prefill
    engine.keep(0)
    engine.keep(32 << 20)
    while not engine.idle:
        n_prefill += engine.step().n_prefill
    engine.close()

    assert n_prefill == 120 + 120 + 1 + 1


def test_what_a_cancelled_job_had_computed_is_there_for_the_next(engine: Engine, gold: Gold, kind: Kind) -> None:
    tokens = prompt(5, 300)
    first = job(tokens, 200)
    engine.add(engine.prepare(first))
    for _ in range(3):
        engine.step()
    engine.cancel(first.id)

    outcome = ask(engine, tokens)

    gold.check(outcome, tokens)
    if kind == "full":
        assert outcome.finished.cached_tokens > 0


def test_nothing_crosses_from_one_domain_to_another(engine: Engine, gold: Gold) -> None:
    tokens = prompt(6, 150)
    longer = tokens + _ids(engine, tokens, 20, cache_domain="a")

    strangers = [ask(engine, longer, cache_domain="b"), ask(engine, longer)]
    together = run(engine, [job(longer, logprobs=0, cache_domain=domain) for domain in ("c", "d")])
    same = ask(engine, longer, cache_domain="a")

    assert [o.finished.cached_tokens for o in (*strangers, *together)] == [0, 0, 0, 0]
    assert same.finished.cached_tokens > 0
    for outcome in (*strangers, *together, same):
        gold.check(outcome, longer)


def test_who_wants_no_cache_neither_finds_nor_leaves_anything(engine: Engine, gold: Gold) -> None:
    tokens = prompt(7, 150)
    longer = tokens + _ids(engine, tokens, 20, cache_prompt=False)

    cold = ask(engine, longer)
    shy = ask(engine, [*longer, 5], cache_prompt=False)

    assert (cold.finished.cached_tokens, shy.finished.cached_tokens) == (0, 0)
    gold.check(cold, longer)


def test_a_new_engine_finds_what_the_last_one_left(
    models: dict[Kind, Path], kind: Kind, alone: Gold, tmp_path: Path
) -> None:
    tokens = prompt(8, 400)
    first = open_engine(models[kind], kv_type=EXACT_CELLS, store=tmp_path / "store")
    tokens += [*_ids(first, tokens, 30), *prompt(9, 12)]
    first.close()

    second = open_engine(models[kind], kv_type=EXACT_CELLS, store=tmp_path / "store")
    outcome = ask(second, tokens)
    second.close()
    other = open_engine(models[kind], layout="unified", kv_type=EXACT_CELLS, store=tmp_path / "store")
    stranger = ask(other, tokens)
    other.close()

    assert outcome.finished.cached_tokens == 400 + 30 - 1
    assert stranger.finished.cached_tokens == 0
    replace(alone, exact=True).check(outcome, tokens)
    alone.check(stranger, tokens)


@pytest.mark.parametrize("store_bytes", [32 << 20, 1])
def test_a_pool_that_runs_full_preempts_and_fails_none(
    models: dict[Kind, Path], kind: Kind, alone: Gold, tmp_path: Path, store_bytes: int
) -> None:
    engine = open_engine(
        models[kind],
        layout="unified",
        kv_tokens=512,
        kv_type=EXACT_CELLS,
        store=tmp_path / "store",
        store_bytes=store_bytes,
    )
    prompts = [prompt(20 + seed, 120) for seed in range(4)]

    outcomes = run(engine, [job(tokens, 90, logprobs=0) for tokens in prompts])

    assert all(isinstance(outcome.end, Finished) for outcome in outcomes)
    for outcome, tokens in zip(outcomes, prompts, strict=True):
        alone.check(outcome, tokens, 90)
        assert len(generated(outcome)) == 90
    assert sum(outcome.finished.preemptions for outcome in outcomes) > 0
    assert outcomes[0].finished.preemptions == 0
    engine.close()


def test_the_lowest_priority_is_preempted_first(models: dict[Kind, Path], tmp_path: Path) -> None:
    engine = open_engine(models["full"], layout="unified", kv_tokens=512, kv_type=EXACT_CELLS, store=tmp_path / "store")
    jobs = [job(prompt(30 + i, 120), 90, priority=priority) for i, priority in enumerate((-1, 5, 0))]

    outcomes = run(engine, jobs)

    assert [outcome.finished.preemptions for outcome in outcomes][1:] == [0, 0]
    assert outcomes[0].finished.preemptions > 0
    engine.close()


def _ids(engine: Engine, tokens: list[int], n: int, **fields: object) -> list[int]:
    """The ids of what the engine generates."""
    outcome = ask(engine, tokens, n, **fields)
    pieces = [entry.bytes for entry in outcome.logprobs()]
    vocabulary = {engine._model.piece(token): token for token in range(canary_kv.N_VOCAB)}  # type: ignore[attr-defined]
    return [vocabulary[piece] for piece in pieces]


def test_a_job_that_waits_for_another_is_answered_when_that_one_is_cancelled(engine: Engine, gold: Gold) -> None:
    head = prompt(11, 350)
    first, second = job(head + [7] * 40), job(head + prompt(12, 9), logprobs=0)
    outcomes = {second.id: Outcome()}
    engine.add(engine.prepare(first))
    engine.step()
    engine.add(engine.prepare(second))
    for event in engine.step().events:
        if event.id in outcomes:
            outcomes[event.id].events.append(event)
    engine.cancel(first.id)
    step_until_idle(engine, outcomes)

    gold.check(outcomes[second.id], head + prompt(12, 9))
