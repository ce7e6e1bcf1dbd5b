"""Sixteen sequences, each with a key of its own, on a pool and a store too small for them: none hears another's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backends.engine import Engine
from backends.messages import Failed, Finished, Generate, KvLayout
from tests.gguf.driver import Outcome
from tests.gguf.prefixes import Gold, generated, job, open_engine
from tests.models import canary_kv
from tests.models.canary_kv import EXACT_CELLS, prompt

pytestmark = pytest.mark.engine

PARALLEL = 16
N_TOKENS = 24
KEY_TOKENS = 3
HEADS = [prompt(500 + seed, n) for seed, n in enumerate((0, 20, 60, 90))]
REOPENED_EVERY = 200
"""Requests after which the model is unloaded and loaded again, its folders kept."""


class Crowd:
    """Keeps an engine full of jobs, each with a key that no other has, and judges what each was told."""

    def __init__(self, gold: Gold, chance: random.Random) -> None:
        self.gold, self.chance = gold, chance
        self.prompts: dict[str, list[int]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.n_keys = self.n_cancelled = self.n_preemptions = self.n_cached = self.n_ties = 0

    def submit(self, engine: Engine) -> None:
        """A shared head, a key of three tokens in base 500, and a tail that makes it long enough to crowd the pool."""
        self.n_keys += 1
        key = [2 + self.n_keys // 500**place % 500 for place in range(KEY_TOKENS)]
        tokens = self.chance.choice(HEADS) + key + prompt(self.n_keys % 7, self.chance.randrange(4, 40))
        if self.prompts and self.chance.random() < 0.2:  # one goes on where another one is
            tokens = (self.chance.choice(list(self.prompts.values())) + key)[-300:]
        made: Generate = job(tokens, N_TOKENS, logprobs=0, priority=self.chance.randrange(2))
        self.prompts[made.id], self.outcomes[made.id] = tokens, Outcome()
        self.take(engine.add(engine.prepare(made)))

    def step(self, engine: Engine) -> None:
        step = engine.step()
        assert step.kv_used <= step.kv_total
        self.take(step.events)
        if self.outcomes and self.chance.random() < 0.01:
            self.take(engine.cancel(self.chance.choice(list(self.outcomes))))

    def take(self, events: list) -> None:
        for event in events:
            self.outcomes[event.id].events.append(event)
            if isinstance(event, Finished | Failed):
                self.judge(self.outcomes.pop(event.id), self.prompts.pop(event.id))

    def judge(self, outcome: Outcome, tokens: list[int]) -> None:
        if isinstance(outcome.end, Failed):
            assert outcome.end.code == "cancelled"
            self.n_cancelled += 1
        else:
            assert len(generated(outcome)) == N_TOKENS
            self.n_preemptions += outcome.finished.preemptions
            self.n_cached += outcome.finished.cached_tokens
        self.n_ties += self.gold.check(outcome, tokens, N_TOKENS)


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_no_answer_is_another_ones(tmp_path: Path, layout: KvLayout, full_counts: bool) -> None:
    exact = layout == "split"
    model = canary_kv.build(tmp_path / "kv.gguf", "full")
    alone = open_engine(model, kv_type=EXACT_CELLS, parallel=1)
    crowd = Crowd(Gold(alone, exact=exact), random.Random(16))
    n_requests = 25_000 if full_counts else 150
    while crowd.n_keys < n_requests:
        engine = open_engine(
            model,
            layout=layout,
            kv_type=EXACT_CELLS,
            kv_tokens=1000 if layout == "unified" else 0,
            parallel=PARALLEL,
            store=tmp_path / "store",
            store_bytes=500_000,
            disk=tmp_path / "disk",
            disk_bytes=300_000,
        )
        until = crowd.n_keys + min(REOPENED_EVERY, n_requests // 3)
        while crowd.n_keys < until:
            while len(crowd.outcomes) < PARALLEL:
                crowd.submit(engine)
            crowd.step(engine)
            if crowd.chance.random() < 0.002:
                engine.keep(crowd.chance.choice([0, 200_000, 500_000]))
        while not engine.idle:
            crowd.step(engine)
        assert not crowd.outcomes
        for folder, cap in (("store", 500_000), ("disk", 300_000)):
            assert sum(file.stat().st_size for file in (tmp_path / folder).iterdir()) <= cap
        engine.close()
    alone.close()

    print({name: value for name, value in vars(crowd).items() if isinstance(value, int)})
    assert crowd.n_ties <= (0 if exact else 1 + n_requests // 500), "rounding parts one answer in two thousand"
    assert crowd.n_cached > 10 * n_requests
    assert crowd.n_cancelled
    if layout == "unified":
        assert crowd.n_preemptions > n_requests / 50
