"""Jobs that come, go on, are cancelled, preempted and restored in any order: greedy answers are the uncontended ones.

From running cells, from host memory and from a disk, before and after the model was unloaded and loaded again. With a
pool per sequence to the last bit; in a shared one the order of cells parts answers at numerical ties.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.engine import Engine
from backends.messages import Failed, Finished, SpeculationMode
from tests.gguf.driver import Outcome
from tests.gguf.prefixes import Gold, job, open_engine
from tests.models import canary_kv
from tests.models.canary_kv import EXACT_CELLS, KINDS, Kind, prompt

pytestmark = pytest.mark.engine

PARALLEL = 4
N_TOKENS = 40
Act = tuple[Literal["join", "cancel", "steps", "keep", "swap"], int, int, int]
ACTS: st.SearchStrategy[list[Act]] = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "join", "cancel", "steps", "steps", "keep", "swap"]),
        st.integers(0, 2),  # whose head, how much memory is left for what is kept
        st.sampled_from([1, 60, 170, 300]),  # how much of it
        st.integers(0, 4),  # whose tail, which to cancel, how many steps
    ),
    min_size=4,
    max_size=24,
)
HEADS = [prompt(100 + seed, 300) for seed in range(3)]
TAILS = [prompt(200 + seed, 5 + 9 * seed) for seed in range(5)]


class Walk:
    """One engine and what its jobs have been told."""

    def __init__(self, open_again: Callable[[], Engine], thought: Callable[[list[int]], tuple[int, ...]]) -> None:
        """`thought`: what a prompt's answer is predicted to be."""
        self.open_again, self.thought = open_again, thought
        self.engine = open_again()
        self.outcomes: dict[str, Outcome] = {}
        self.prompts: dict[str, list[int]] = {}
        self.choices: dict[str, int] = {}
        self.running: list[str] = []

    def join(self, tokens: list[int], *, priority: int, n: int) -> None:
        if sum(self.choices[name] for name in self.running) + n <= PARALLEL:
            made = job(tokens, N_TOKENS, logprobs=0, priority=priority, n=n)
            self.prompts[made.id], self.outcomes[made.id], self.choices[made.id] = tokens, Outcome(), n
            self.running.append(made.id)
            prepared: Any = self.engine.prepare(made)
            assert not isinstance(prepared, list)
            thought = self.thought(tokens)
            self._take(self.engine.add(replace(prepared, borders=(60, 170, *prepared.borders), prediction=thought)))

    def cancel(self, number: int) -> None:
        if self.running:
            self._take(self.engine.cancel(self.running[number % len(self.running)]))

    def swap(self) -> None:
        """Jobs end before their model leaves, and the next worker finds the folders of this one."""
        self.steps(3000)
        self.engine.close()
        self.engine = self.open_again()

    def steps(self, n: int) -> None:
        for _ in range(n):
            if not self.engine.idle:
                step = self.engine.step()
                assert step.kv_used <= step.kv_total
                self._take(step.events)

    def _take(self, events: list) -> None:
        for event in events:
            self.outcomes[event.id].events.append(event)
            if isinstance(event, (Finished, Failed)):
                self.running.remove(event.id)


@pytest.fixture(scope="module", params=KINDS)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Gold]]:
    kind: Kind = request.param
    model = canary_kv.build(tmp_path_factory.mktemp("walk") / f"{kind}.gguf", kind)
    canary_kv.build(model.with_suffix(".draft"), kind, noise=0.05)
    engine = open_engine(model, kv_type=EXACT_CELLS, parallel=1)
    yield model, Gold(engine)
    engine.close()


def predicted(gold: Gold, tokens: list[int]) -> tuple[int, ...]:
    """The answer itself, but for every ninth token: so drafts come true, and have to be taken back too."""
    model: Any = gold.engine._model  # type: ignore[attr-defined]
    ids = {model.literal(token): token for token in range(canary_kv.N_VOCAB)}
    right = [ids.get(piece, 7) for piece in gold.of(tokens, N_TOKENS)]
    return tuple(7 if place % 9 == len(tokens) % 9 else token for place, token in enumerate(right))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    acts=ACTS,
    pooled=st.booleans(),
    store_kib=st.sampled_from([1, 300, 1 << 14]),
    disk_kib=st.sampled_from([0, 400, 1 << 14]),
    speculation=st.sampled_from(["ngram", "ngram", "off"]),
    by_model=st.booleans(),
)
def test_any_order_of_coming_and_going_leaves_every_answer_as_it_is(
    setting: tuple[Path, Gold],
    acts: list[Act],
    pooled: bool,
    store_kib: int,
    disk_kib: int,
    speculation: SpeculationMode,
    by_model: bool,
) -> None:
    model, alone = setting
    gold = replace(alone, exact=not pooled)
    with tempfile.TemporaryDirectory() as folder:
        store, disk = Path(folder) / "store", Path(folder) / "disk"
        walk = Walk(
            lambda: open_engine(
                model,
                layout="unified" if pooled else "split",
                kv_type=EXACT_CELLS,
                kv_tokens=512,
                parallel=PARALLEL,
                store=store,
                store_bytes=store_kib << 10,
                disk=disk if disk_kib else None,
                disk_bytes=disk_kib << 10,
                speculation=speculation,
                draft=model.with_suffix(".draft") if by_model else None,
            ),
            lambda tokens: () if by_model else predicted(alone, tokens),
        )
        for what, head, n_head, number in acts:
            if what == "join":
                walk.join(HEADS[head][:n_head] + TAILS[number], priority=number % 2, n=2 if number == 3 else 1)
            elif what == "cancel":
                walk.cancel(number)
            elif what == "keep":
                walk.engine.keep((store_kib << 10) * head // 2)
            elif what == "swap":
                walk.swap()
            else:
                walk.steps(1 + 6 * number)
        walk.steps(3000)

        assert not walk.running
        for job_id, outcome in walk.outcomes.items():
            for index in range(walk.choices[job_id]):
                gold.check(outcome, walk.prompts[job_id], N_TOKENS, index=index)
                assert len(outcome.logprobs(index)) == N_TOKENS or isinstance(outcome.end, Failed)
            if isinstance(outcome.end, Finished):
                assert outcome.end.completion_tokens == N_TOKENS * walk.choices[job_id]
            else:
                assert outcome.end.code == "cancelled"
        walk.engine.close()
        for tier, cap_kib in ((store, store_kib), (disk, disk_kib)):
            files = list(tier.iterdir()) if tier.exists() else []
            assert sum(file.stat().st_size for file in files) <= cap_kib << 10
