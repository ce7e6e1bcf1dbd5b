"""Prompts of text and images come, go on and are cancelled in any order, in a pool too small for all: each is answered
as it is alone.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backends.messages import Failed, Finished
from tests.gguf.driver import Outcome, run
from tests.models.seeing import picture
from tests.seeing.driver import LAYOUT, MADE, Piece, build, look, open_seer

pytestmark = pytest.mark.engine
PARALLEL, N_TOKENS, N_ACTS = 4, 16, 60
ROUNDING = 1e-3
HEADS: list[list[Piece]] = [[list(range(20, 80))], [picture(1, width=300, height=120)], [[7, 8], picture(2, width=90)]]
TAILS: list[list[Piece]] = [
    [[9, 10]],
    [picture(3), [11]],
    [list(range(30, 60)), picture(1, width=300, height=120), [12]],
]


@pytest.mark.parametrize("made", MADE)
def test_any_order_leaves_every_answer_as_it_is(made: str, tmp_path: Path) -> None:
    model, layout = build(tmp_path / "model", made), LAYOUT[made]
    alone = open_seer(model, parallel=1)
    prompts = [head + tail for head in HEADS for tail in TAILS]
    gold = [run(alone, [look(prompt, cache_prompt=False)])[0] for prompt in prompts]
    alone.close()
    rng = random.Random(3)
    engine = open_seer(model, layout=layout, kv_tokens=512, context=512, store=tmp_path / "store", store_bytes=1 << 18)
    outcomes: dict[str, Outcome] = {}
    asked: dict[str, int] = {}

    def step(n: int) -> None:
        for _ in range(n):
            for event in [] if engine.idle else engine.step().events:
                outcomes[event.id].events.append(event)

    def running() -> list[str]:
        return [
            name for name, told in outcomes.items() if not any(isinstance(e, Finished | Failed) for e in told.events)
        ]

    for _ in range(N_ACTS):
        act = rng.random()
        if act < 0.5 and len(running()) < PARALLEL:
            number = rng.randrange(len(prompts))
            job = look(prompts[number])
            asked[job.id], outcomes[job.id] = number, Outcome()
            outcomes[job.id].events += engine.add(engine.prepare(job))
        elif act < 0.6 and running():
            name = rng.choice(running())
            outcomes[name].events += engine.cancel(name)
        else:
            step(rng.randint(1, 12))
    step(2000)

    assert not running()
    finished = {name: told for name, told in outcomes.items() if isinstance(told.end, Finished)}
    assert len(finished) > 5
    assert max(told.started.cached_tokens for told in finished.values()) > 40
    for name, told in finished.items():
        ours, theirs = told.logprobs(), gold[asked[name]].logprobs()
        assert [entry.bytes for entry in ours] == [entry.bytes for entry in theirs], asked[name]
        likely = [entry.logprob for entry in theirs]
        assert [entry.logprob for entry in ours] == pytest.approx(likely, abs=ROUNDING)
    engine.close()
