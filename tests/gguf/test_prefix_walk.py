"""Jobs that come, go on, are cancelled, preempted and restored in any order: greedy answers are the uncontended ones.

From running cells, from host memory and from a disk, before and after the model was unloaded and loaded again. With a
pool per sequence to the last bit; in a shared one the order of cells parts answers at numerical ties.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.engine import Engine
from backends.messages import Failed, Finished, SpeculationMode
from tests.gguf.driver import Outcome
from tests.gguf.prefixes import Gold, job, open_engine
from tests.models import canary_kv, canary_mtp
from tests.models.canary_kv import EXACT_CELLS, KINDS, Kind, prompt

pytestmark = pytest.mark.engine

PARALLEL = 4
N_TOKENS = 40
Where = Kind | Literal["mtp", "folder"]
_N_WALKS: dict[Where, int] = {"mtp": 10, "folder": 4}
_OTHERS, _TIMES_WHEN_FULL = 16, 13
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
        self.n_accepted = Counter[str]()

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
                self.n_accepted.update({drafter: n for drafter, (_, n) in step.drafted.items() if n})
                self._take(step.events)

    def _take(self, events: list) -> None:
        for event in events:
            self.outcomes[event.id].events.append(event)
            if isinstance(event, (Finished, Failed)):
                self.running.remove(event.id)


@dataclass(frozen=True)
class Setting:
    """A model, what drafts for it, and what it says when nothing else runs."""

    kind: Where
    model: Path
    gold: Gold
    n_accepted: Counter[str] = field(default_factory=Counter)
    """Drafted tokens that came true, by drafter."""

    def open(self, *, by_network: bool = False, **fields: Any) -> Engine:
        """`by_network`: what drafts beside earlier text is a network."""
        if by_network:
            fields |= {"mtp": True} if self.kind == "mtp" else {"draft": self.model.with_suffix(".draft")}
        return _open(self.kind, self.model, **fields)


def _open(kind: Where, model: Path, **fields: Any) -> Engine:
    if kind == "folder":
        return open_engine(model, kv_type="f32", backend="bnb", **fields)
    return open_engine(model, kv_type=EXACT_CELLS, **fields)


def _built(kind: Where, folder: Path) -> Path:
    if kind == "mtp":
        return canary_mtp.build_mixed(folder / "mtp.gguf")
    if kind == "folder":
        canary_kv.build_folder(folder / "model.draft", noise=0.02)
        return canary_kv.build_folder(folder / "model")
    canary_kv.build(folder / f"{kind}.draft", kind, noise=0.05)
    return canary_kv.build(folder / f"{kind}.gguf", kind)


@pytest.fixture(scope="module", params=[*KINDS, "mtp", "folder"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    model = _built(request.param, tmp_path_factory.mktemp("walk"))
    engine = _open(request.param, model, parallel=1)
    yield Setting(request.param, model, Gold(engine))
    engine.close()


def predicted(gold: Gold, tokens: list[int]) -> tuple[int, ...]:
    """The answer itself, but for every ninth token: so drafts come true, and have to be taken back too."""
    model: Any = gold.engine._model  # type: ignore[attr-defined]
    ids = {model.literal(token): token for token in range(canary_kv.N_VOCAB)}
    right = [ids.get(piece, 7) for piece in gold.of(tokens, N_TOKENS)]
    return tuple(7 if place % 9 == len(tokens) % 9 else token for place, token in enumerate(right))


def test_any_order_of_coming_and_going_leaves_every_answer_as_it_is(setting: Setting, full_counts: bool) -> None:
    n_walks = _N_WALKS.get(setting.kind, _OTHERS) * (_TIMES_WHEN_FULL if full_counts else 1)

    @settings(max_examples=n_walks, deadline=None, derandomize=True)
    @given(
        acts=ACTS,
        pooled=st.booleans(),
        store_kib=st.sampled_from([1, 300, 1 << 14]),
        disk_kib=st.sampled_from([0, 400, 1 << 14]),
        speculation=st.sampled_from(["ngram", "ngram", "off"]),
        by_network=st.booleans(),
    )
    def walks(**drawn: Any) -> None:
        _walk(setting, **drawn)

    walks()

    drafters = (
        set() if setting.kind in ("state", "hybrid") else {"prediction", "mtp" if setting.kind == "mtp" else "model"}
    )
    assert {name for name, n in setting.n_accepted.items() if n > 20} >= drafters
    assert drafters or not setting.n_accepted


def _walk(
    setting: Setting,
    *,
    acts: list[Act],
    pooled: bool,
    store_kib: int,
    disk_kib: int,
    speculation: SpeculationMode,
    by_network: bool,
) -> None:
    gold = replace(setting.gold, exact=not pooled and setting.kind != "folder")
    with tempfile.TemporaryDirectory() as folder:
        store, disk = Path(folder) / "store", Path(folder) / "disk"
        walk = Walk(
            lambda: setting.open(
                by_network=by_network,
                layout="unified" if pooled else "split",
                kv_tokens=512,
                parallel=PARALLEL,
                store=store,
                store_bytes=store_kib << 10,
                disk=disk if disk_kib else None,
                disk_bytes=disk_kib << 10,
                speculation=speculation,
            ),
            lambda tokens: () if by_network else predicted(setting.gold, tokens),
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
        setting.n_accepted.update(walk.n_accepted)
        for tier, cap_kib in ((store, store_kib), (disk, disk_kib)):
            files = list(tier.iterdir()) if tier.exists() else []
            assert sum(file.stat().st_size for file in files) <= cap_kib << 10
