"""What runs in the worker: a few bytes of each file in each step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backends.engine import JobError
from backends.files import model_files
from backends.messages import ErrorCode, Event, Failed, Finished, Job, LoadModel, Ready, Started, Step
from tests.echo.kind import ECHO, Echo, Echoed, EchoFacts, EchoPlan

_STEP_BYTES = 8


def load(spec: LoadModel[EchoPlan], progress: Callable[[float], None]) -> EchoEngine:
    progress(1.0)
    weights = int(model_files.read_bytes(Path(spec.path), 100).split()[1])
    return EchoEngine(weights, spec.plan.voices, shouts=spec.options.get("shout") is True)


@dataclass
class Prepared:
    """A job and the bytes of its file, which is not opened again."""

    job: Echo
    data: bytes

    @property
    def id(self) -> str:
        return self.job.id


@dataclass
class EchoEngine:
    """See `backends.engine.Engine`."""

    weights: int
    voices: int
    shouts: bool
    takes: tuple[type[Job], ...] = (Echo,)
    _running: dict[str, Prepared] = field(default_factory=dict)
    _said: dict[str, int] = field(default_factory=dict)

    def ready(self) -> Ready[EchoFacts]:
        facts = EchoFacts(longest_bytes=ECHO.limits.file_bytes)
        parts = {"weights": self.weights, "runtime": 20 * 2**20, "voices": self.voices * 5 * 2**20}
        measured = sum(parts.values())
        return Ready(facts, self.voices, measured_bytes=measured, parts=parts, capabilities=["echo"], engine="echo 1")

    def prepare(self, job: Echo) -> Prepared | list[Event]:
        if job.file is None:
            return Prepared(job, job.text.encode())
        try:
            data = model_files.read_bytes(Path(job.file.path), ECHO.limits.file_bytes)
        except model_files.FileError as error:
            raise JobError("invalid_value", str(error), param="file") from None
        if not data.isascii():
            raise JobError("unsupported_media", f"{job.file.name} is no text", param="file")
        return Prepared(job, data)

    def add(self, prepared: Prepared) -> list[Event]:
        if prepared.data.startswith(b"!crash"):
            os.abort()
        self._running[prepared.id] = prepared
        self._said[prepared.id] = 0
        return [Started(prepared.id, prompt_tokens=0)]

    def interrupt(self, job_id: str) -> None:
        """Its steps are short."""

    def attend(self, waits: Callable[[], bool]) -> None:
        """The same."""

    def make_way(self) -> None:
        """The same."""

    def cancel(self, job_id: str) -> list[Event]:
        if self._running.pop(job_id, None) is None:
            return []
        return [Failed(job_id, "cancelled", "the request was cancelled")]

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        return self.cancel(job_id)

    def preempt(self, job_id: str) -> list[Event]:
        return []

    def step(self) -> Step:
        begin, said = time.perf_counter(), list(self._running.values())
        events: list[Event] = []
        for prepared in said:
            time.sleep(prepared.job.delay_ms / 1000)
            self._said[prepared.id] += _STEP_BYTES
            if self._said[prepared.id] >= len(prepared.data):
                del self._running[prepared.id]
                text = prepared.data.decode()
                events += [Echoed(prepared.id, text.upper() if self.shouts else text), Finished(prepared.id)]
        return Step(events=events, n_inputs=len(said), duration_us=int((time.perf_counter() - begin) * 1e6))

    def keep(self, max_bytes: int) -> None:
        """Nothing is."""

    @property
    def idle(self) -> bool:
        return not self._running

    def close(self) -> None:
        self._running.clear()
