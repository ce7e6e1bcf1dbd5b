"""Runs jobs through an engine in this process, the way a worker's main loop does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.engine import Engine
from backends.messages import Delta, Event, Failed, Finished, Generate, Job, Started, TextPrompt, TokenLogprob


@dataclass
class Outcome:
    """All events of one job, and what a client would make of them."""

    events: list[Event] = field(default_factory=list)

    def text(self, index: int = 0) -> str:
        return "".join(e.text for e in self.deltas(index))

    def deltas(self, index: int = 0) -> list[Delta]:
        return [e for e in self.events if isinstance(e, Delta) and e.index == index]

    def reason(self, index: int = 0) -> str | None:
        return self.deltas(index)[-1].finish_reason

    def logprobs(self, index: int = 0) -> list[TokenLogprob]:
        return [entry for delta in self.deltas(index) for entry in delta.logprobs or []]

    @property
    def started(self) -> Started:
        return next(e for e in self.events if isinstance(e, Started))

    @property
    def end(self) -> Finished | Failed:
        terminal = [e for e in self.events if isinstance(e, (Finished, Failed))]
        assert len(terminal) == 1
        assert self.events[-1] is terminal[0]
        return terminal[0]

    @property
    def finished(self) -> Finished:
        assert isinstance(self.end, Finished), self.end
        return self.end


def run(engine: Engine, jobs: Sequence[Job]) -> list[Outcome]:
    """Add all jobs before the first step, then step until the engine is idle."""
    outcomes = {job.id: Outcome() for job in jobs}
    for job in jobs:
        prepared = engine.prepare(job)
        outcomes[job.id].events += prepared if isinstance(prepared, list) else engine.add(prepared)
    step_until_idle(engine, outcomes)
    return [outcomes[job.id] for job in jobs]


def step_until_idle(engine: Engine, outcomes: dict[str, Outcome]) -> None:
    while not engine.idle:
        for event in engine.step().events:
            outcomes[event.id].events.append(event)


def text_job(prompt: str, **fields: object) -> Generate:
    """A raw completion; ids are unique enough for one engine."""
    job_id = fields.pop("id", f"job-{prompt[-24:]}-{len(prompt)}")
    return Generate(id=str(job_id), prompt=TextPrompt(prompt), **fields)  # type: ignore[arg-type]
