"""Runs embedding jobs through an engine in this process, the way a worker's main loop does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.engine import Engine
from backends.messages import Embed, Embedded, Failed, Finished, Job, Rerank, Started


@dataclass
class Outcome:
    """What came of one job."""

    rows: dict[int, np.ndarray] = field(default_factory=dict)
    started: Started | None = None
    end: Finished | Failed | None = None
    last_step: int = 0

    @property
    def vectors(self) -> np.ndarray:
        """`(n_inputs, dimensions)` in the order of the inputs."""
        assert isinstance(self.end, Finished), self.end
        assert self.started is not None
        assert self.started.prompt_tokens == self.end.prompt_tokens
        return np.stack([self.rows[place] for place in range(len(self.rows))])


def run(engine: Engine, jobs: Sequence[Job]) -> list[Outcome]:
    """Add all jobs before the first step, then step until the engine is idle."""
    outcomes = {job.id: Outcome() for job in jobs}
    for job in jobs:
        for event in engine.add(engine.prepare(job)):
            assert isinstance(event, Started)
            outcomes[event.id].started = event
    n_steps = 0
    while not engine.idle:
        n_steps += 1
        take(engine.step().events, outcomes, n_steps)
    return [outcomes[job.id] for job in jobs]


def take(events: Sequence[object], outcomes: dict[str, Outcome], step: int = 0) -> None:
    for event in events:
        match event:
            case Embedded():
                outcome = outcomes[event.id]
                assert outcome.end is None
                rows = np.frombuffer(event.vectors, "<f4").reshape(len(event.inputs), event.dimensions)
                assert not set(event.inputs) & set(outcome.rows)
                outcome.rows |= dict(zip(event.inputs, rows, strict=True))
            case Finished() | Failed():
                assert outcomes[event.id].end is None
                outcomes[event.id].end, outcomes[event.id].last_step = event, step


def vectors(engine: Engine, inputs: Sequence[str | list[int]], **fields: object) -> np.ndarray:
    (outcome,) = run(engine, [Embed(id="one", inputs=list(inputs), **fields)])  # type: ignore[arg-type]
    return outcome.vectors


def scores(engine: Engine, query: str, documents: list[str]) -> np.ndarray:
    (outcome,) = run(engine, [Rerank(id="one", query=query, documents=documents)])
    return outcome.vectors[:, 0]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row by row."""
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
