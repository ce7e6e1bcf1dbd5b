"""Models that forget (a sliding window, a running state): what is found again, and that answers are a cold run's.

`full` attention stands beside them, so that what is the same for all is held against all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.engine import Engine
from backends.generation.tiles import TILE
from backends.messages import KvLayout
from tests.gguf.driver import Outcome, step_until_idle
from tests.gguf.prefixes import Gold, job, open_engine
from tests.models import canary_kv
from tests.models.canary_kv import EXACT_CELLS, KINDS, Kind, prompt

pytestmark = pytest.mark.engine

HEAD = 3 * TILE
"""Three whole tiles: where a checkpoint within a prompt may stand."""
N_TOKENS = 24


class Place:
    """A model of one kind, its golden answers, and an engine with a store."""

    def __init__(self, model: Path, alone: Gold, kind: Kind, layout: KvLayout, folder: Path) -> None:
        self.kind = kind
        self._model, self._layout, self._folder = model, layout, folder
        self.gold = replace(alone, exact=layout == "split")
        self.engine = self.open()

    def open(self, *, store_bytes: int = 32 << 20, disk_bytes: int = 0, parallel: int = 4) -> Engine:
        return open_engine(
            self._model,
            layout=self._layout,
            kv_type=EXACT_CELLS,
            parallel=parallel,
            kv_tokens=2048,
            store=self._folder / "store",
            store_bytes=store_bytes,
            disk=self._folder / "disk" if disk_bytes else None,
            disk_bytes=disk_bytes,
        )

    def ask(self, tokens: list[int], *, borders: Sequence[int] = (), **fields: object) -> int:
        """Ask, hold the answer against the golden one, and tell how many tokens were there."""
        (outcome,) = self.run([tokens], borders=borders, **fields)
        return outcome.finished.cached_tokens

    def run(self, prompts: list[list[int]], *, borders: Sequence[int] = (), **fields: object) -> list[Outcome]:
        jobs = [job(tokens, N_TOKENS, logprobs=0, **fields) for tokens in prompts]
        outcomes = {each.id: Outcome() for each in jobs}
        for each in jobs:
            prepared: Any = self.engine.prepare(each)
            assert not isinstance(prepared, list)
            if self.kind != "full":
                prepared = replace(prepared, borders=(*borders, *prepared.borders))
            self.engine.add(prepared)
        step_until_idle(self.engine, outcomes)
        for each, tokens in zip(jobs, prompts, strict=True):
            for index in range(each.n):
                self.gold.check(outcomes[each.id], tokens, N_TOKENS, index=index)
        return [outcomes[each.id] for each in jobs]

    def answer(self, tokens: list[int]) -> list[int]:
        model = self.engine._model  # type: ignore[attr-defined]
        vocabulary = {model.piece(token): token for token in range(canary_kv.N_VOCAB)}
        return [vocabulary[piece] for piece in self.gold.of(tokens, N_TOKENS)]


ALIKE: tuple[Kind, ...] = ("gemma2", "gpt-oss")
"""Windows as `window` has them: one walk through all that is kept is enough."""


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kind, Path, Gold]]:
    kind: Kind = request.param
    path = canary_kv.build(tmp_path_factory.mktemp("checkpoints") / f"{kind}.gguf", kind)
    engine = open_engine(path, kv_type=EXACT_CELLS, parallel=1)
    yield kind, path, Gold(engine)
    engine.close()


@pytest.fixture(params=["split", "unified"])
def place(request: pytest.FixtureRequest, model: tuple[Kind, Path, Gold], tmp_path: Path) -> Iterator[Place]:
    kind, path, alone = model
    layout: KvLayout = request.param
    made = Place(path, alone, kind, layout, tmp_path)
    yield made
    made.engine.close()


def test_the_same_prompt_is_there_but_for_its_last_token(place: Place) -> None:
    for n_tokens in (40, 200, 333, 448):
        tokens = prompt(n_tokens, n_tokens)
        assert [place.ask(tokens) for _ in range(3)] == [0, n_tokens - 1, n_tokens - 1]


def test_a_prompt_with_another_end_is_there_as_far_as_they_are_alike(place: Place) -> None:
    head = prompt(1, HEAD)
    first, second, third = (head + prompt(seed, 70 + seed) for seed in (2, 3, 4))

    assert [place.ask(tokens, borders=[HEAD]) for tokens in (first, second, third, first)] == [
        0,
        HEAD,
        HEAD,
        len(first) - 1,
    ]


def test_where_two_have_parted_a_third_begins(place: Place) -> None:
    head = prompt(5, HEAD)
    cached = [place.ask(head + prompt(seed, 80)) for seed in (6, 7, 8)]

    assert cached == ([0, HEAD, HEAD] if place.kind == "full" else [0, 0, HEAD])


def test_the_next_turn_goes_on_behind_the_answer_and_may_be_edited(place: Place) -> None:
    tokens = prompt(9, 200)
    place.ask(tokens)
    said = [*tokens, *place.answer(tokens)]

    assert place.ask(said + prompt(10, 100)) == len(said) - 1
    assert place.ask(said + prompt(11, 90)) >= len(said) - 1, "what was said before stays where a turn is edited"
    assert place.ask(tokens) == 199
    edited = place.ask([*tokens, *prompt(12, 60)])  # a tile more where that is cheaper than a short rest
    assert edited >= 199 - TILE, "an answer that comes back otherwise than it was generated"


def test_a_swap_and_a_disk_keep_checkpoints(place: Place) -> None:
    head = prompt(13, HEAD)
    first, second = head + prompt(14, 90), head + prompt(15, 80)
    place.ask(first, borders=[HEAD])
    place.engine.close()
    place.engine = place.open(disk_bytes=32 << 20)
    assert place.ask(first) == len(first) - 1

    place.engine.keep(0)
    assert place.ask(second, borders=[HEAD]) == HEAD
    place.engine.close()
    place.engine = place.open(disk_bytes=32 << 20)
    assert place.ask(second) == len(second) - 1


def test_who_comes_while_the_first_one_runs_begins_at_its_checkpoint(place: Place) -> None:
    head = prompt(16, HEAD)
    first = job(head + prompt(17, 60), 200, logprobs=0)
    prepared: Any = place.engine.prepare(first)
    assert not isinstance(prepared, list)
    place.engine.add(replace(prepared, borders=(HEAD, *prepared.borders)))
    outcome = Outcome()
    while not outcome.deltas():
        outcome.events += place.engine.step().events

    (late,) = _beside(place, head + prompt(18, 50), {first.id: outcome})
    assert late.finished.cached_tokens == HEAD
    place.gold.check(outcome, head + prompt(17, 60), 200)


def _beside(place: Place, tokens: list[int], outcomes: dict[str, Outcome]) -> list[Outcome]:
    made = job(tokens, N_TOKENS, logprobs=0)
    outcomes[made.id] = Outcome()
    place.engine.add(place.engine.prepare(made))
    step_until_idle(place.engine, outcomes)
    place.gold.check(outcomes[made.id], tokens, N_TOKENS)
    return [outcomes[made.id]]


def test_prompts_that_come_together_compute_their_head_once(place: Place) -> None:
    head = prompt(19, HEAD + 8)
    outcomes = place.run([head + prompt(20 + i, 7 + i) for i in range(4)])

    assert sorted(outcome.finished.cached_tokens for outcome in outcomes) == [0, *[HEAD + 8] * 3]


def test_choices_for_which_there_is_no_slot_do_not_compute_the_prompt_again(place: Place) -> None:
    n_prefill = 0
    made = job(prompt(30, 300), N_TOKENS, logprobs=0, n=7)
    outcomes = {made.id: Outcome()}
    place.engine.add(place.engine.prepare(made))
    while not place.engine.idle:
        step = place.engine.step()
        n_prefill += step.n_prefill
        outcomes[made.id].events += step.events

    for index in range(7):
        place.gold.check(outcomes[made.id], prompt(30, 300), N_TOKENS, index=index)
    assert n_prefill == 300 + 3


def test_a_checkpoint_takes_no_more_than_what_is_forgotten(place: Place) -> None:
    """With full attention beside it, the part that grows with the prompt is kept once."""
    sizes = {}
    for n_tokens in (200, 400):
        place.engine.keep(0)
        place.engine.keep(32 << 20)
        place.ask(prompt(31, n_tokens))
        sizes[n_tokens] = sorted(entry.label.n_state for entry in place.engine._residency.store._of)  # type: ignore[attr-defined]

    short, long = sizes[200], sizes[400]
    assert len(short) == len(long) == (1 if place.kind == "full" else 2)
    if place.kind != "full":
        assert short[0] == long[0]
        assert (short[1] < long[1]) == (place.kind != "state")


def test_what_no_entry_carries_any_more_leaves(place: Place) -> None:
    tokens = prompt(32, 300)
    place.ask(tokens)
    store = place.engine._residency.store  # type: ignore[attr-defined]
    for entry in [entry for entry in store._of if not entry.label.partial]:
        store.drop(entry)

    assert len(store) == 0
    assert place.ask(tokens) == 0


def test_no_checkpoint_is_left_by_who_wants_no_cache(place: Place) -> None:
    place.ask(prompt(33, 300), cache_prompt=False)

    assert len(place.engine._residency.store) == 0  # type: ignore[attr-defined]


def test_no_checkpoint_crosses_domains(place: Place) -> None:
    tokens = prompt(34, 300)
    cached = [place.ask(tokens, cache_domain=domain) for domain in ("a", "b", "a")]

    assert cached == [0, 0, 299]


@pytest.mark.parametrize("kind", ALIKE)
def test_other_families_with_windows_are_found_again(kind: Kind, tmp_path: Path) -> None:
    path = canary_kv.build(tmp_path / "model.gguf", kind)
    alone = open_engine(path, kv_type=EXACT_CELLS, parallel=1)
    place = Place(path, Gold(alone), kind, "split", tmp_path)
    head = prompt(40, HEAD)
    first, second = head + prompt(41, 200), head + prompt(42, 90)

    cached = [place.ask(tokens, borders=[HEAD]) for tokens in (first, first, second)]
    said = [*first, *place.answer(first)]
    cached.append(place.ask(said + prompt(43, 70)))
    alone.close()
    place.engine.close()

    assert cached == [0, len(first) - 1, HEAD, len(said) - 1]
