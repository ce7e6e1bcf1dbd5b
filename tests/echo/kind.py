"""The kind of job: its message, its answer, what a model for it tells of itself, and its line of the table."""

from __future__ import annotations

from backends.kinds import Kind, Limits
from backends.messages import Facts, Job, LoadPlan, Part, SpoolFile


class Echo(Job, tag="echo", frozen=True):
    """Say what is in a file."""

    file: SpoolFile
    delay_ms: int = 0
    """In each step."""


class Echoed(Part, tag="echoed", frozen=True):
    """All of it."""

    text: str


class EchoFacts(Facts, tag="echo", frozen=True):
    """Neither context nor vocabulary."""

    longest_bytes: int


class EchoPlan(LoadPlan, tag="echo", frozen=True):
    """Nothing to choose."""


ECHO = Kind(
    name="echo",
    job=Echo,
    parts=(Echoed,),
    capability="echo",
    gives="echoes",
    does="echoes files",
    lacks="echoes no files",
    wanted="a model that echoes",
    paths=("/v1/echo",),
    weight=lambda job: 0,
    facts=EchoFacts,
    plan=EchoPlan,
    limits=Limits(files=("file",), file_bytes=64 * 1024, media=("text/*",)),
)
