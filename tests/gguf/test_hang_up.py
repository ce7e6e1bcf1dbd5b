"""What is computed for a client after it has hung up: nothing but the step that is at hand."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from backends.border.clerk import Clerk
from backends.border.link import Link
from backends.border.wire import command_decoder
from backends.border.worker_main import run
from backends.engine import Engine, Prepared
from backends.messages import Cancel, Event, Failed, Generate, Shutdown, Step
from tests.gguf.driver import Outcome
from tests.gguf.prefixes import job, open_engine
from tests.models import canary_kv
from tests.models.canary_kv import prompt

pytestmark = pytest.mark.engine

N_TOKENS = 60
STAYS: Generate = job(prompt(1, 30), N_TOKENS, logprobs=0)
LEAVES: Generate = job(prompt(2, 450), N_TOKENS, logprobs=0)
"""Its prompt takes seven steps of 64 tokens beside the other one."""


class Interrupted:
    """An engine in the worker's loop, two jobs for it, and in the middle of step `at` one of the clients hangs up."""

    def __init__(self, engine: Engine, clerk: Clerk, *, at: int) -> None:
        self.engine, self.inbox, self.at = engine, clerk.inbox, at
        self.steps: list[Step] = []
        self.outcomes = {STAYS.id: Outcome(), LEAVES.id: Outcome()}
        for made in (STAYS, LEAVES):
            self.inbox.put(engine.prepare(made))  # type: ignore[arg-type]  # both are good prompts

    @property
    def idle(self) -> bool:
        return self.engine.idle

    def add(self, prepared: Prepared) -> list[Event]:
        return self.engine.add(prepared)

    def cancel(self, job_id: str) -> list[Event]:
        return self._noted(self.engine.cancel(job_id))

    def step(self) -> Step:
        if len(self.steps) == self.at:
            self.inbox.put(Cancel(LEAVES.id))
        self.steps.append(self.engine.step())
        self._noted(self.steps[-1].events)
        if self.idle:
            self.inbox.put(Shutdown())
        return self.steps[-1]

    def _noted(self, events: list[Event]) -> list[Event]:
        for event in events:
            self.outcomes[event.id].events.append(event)
        return events


@pytest.mark.parametrize("at", [0, 1, 4, 7, 8, 9, 30])
def test_only_the_step_at_hand_is_computed_for_who_has_hung_up(tmp_path: Path, at: int) -> None:
    """Before its prompt, at its first piece, in the middle, at its end, at the first token and later."""
    engine = open_engine(canary_kv.build(tmp_path / "kv.gguf", "full"), parallel=2, max_itl_ms=0.001)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(theirs, command_decoder())
        clerk = Clerk(link)
        watched = Interrupted(engine, clerk, at=at)
        run(watched, link, clerk)  # type: ignore[arg-type]  # of an engine's methods those that the loop calls
    engine.close()

    first, *later = [step for step in watched.steps if step.n_decode]
    rows = [first.n_prefill - 30, *(step.n_prefill + step.n_decode - 1 for step in later)]
    assert len(rows) == N_TOKENS
    assert [n > 0 for n in rows] == [0 < number <= at for number in range(N_TOKENS)]
    assert len(watched.outcomes[STAYS.id].logprobs()) == N_TOKENS
    ended = watched.outcomes[LEAVES.id].end
    assert isinstance(ended, Failed)
    assert ended.code == "cancelled"
