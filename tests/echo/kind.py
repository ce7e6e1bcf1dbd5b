"""The kind of job: its message, its answer, what a model for it tells of itself, and its line of the table."""

from __future__ import annotations

from collections.abc import Mapping

from backends.kinds import Kind, Limits, Metric
from backends.messages import Event, Facts, Figure, Job, LoadPlan, Part, SpoolFile, Started


class Echo(Job, tag="echo", frozen=True):
    """Say what is in a file, or a text."""

    file: SpoolFile | None = None
    text: str = ""
    delay_ms: int = 0
    """In each step."""


class Echoed(Part, tag="echoed", frozen=True):
    """All of it."""

    text: str


class EchoFacts(Facts, tag="echo", frozen=True):
    """Neither context nor vocabulary."""

    longest_bytes: int

    @property
    def told(self) -> Mapping[str, Figure]:
        return {"longest_bytes": self.longest_bytes}


class EchoPlan(LoadPlan, tag="echo", frozen=True):
    """How many speak at once."""

    voices: int

    @property
    def words(self) -> str:
        return f"voices {self.voices}"


def _said(_job: Echo, event: Event) -> float | None:
    return len(event.text) if isinstance(event, Echoed) else None


def _heard(job: Echo, event: Event) -> float | None:
    return job.file.n_bytes if isinstance(event, Started) and job.file is not None else None


ECHO = Kind(
    name="echo",
    job=Echo,
    parts=(Echoed,),
    capability="echo",
    gives="echoes",
    does="echoes files",
    lacks="echoes no files",
    wanted="a model that echoes",
    paths=("/v1/echo", "/v1/echo/text"),
    forms=("/v1/echo",),
    weight=lambda job: 0,
    facts=EchoFacts,
    plan=EchoPlan,
    metrics=(
        Metric("echoed_characters", "counter", "Characters said", _said),
        Metric("echo_file_bytes", "histogram", "Bytes of each file", _heard, edges=(16, 1024, 65536)),
    ),
    limits=Limits(files=("file",), file_bytes=64 * 1024, media=("text/*",)),
)
