"""The seam between the engine and the models that hear: windows go in, text with its times comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from backends.speech.kind import Segment, Task, Transcribe
    from backends.speech.windows import Window


@dataclass(frozen=True)
class Asked:
    """What a job wants of each of its windows."""

    task: Task
    code: str | None
    """Of the language; None until the first window has told."""
    prompt: list[int]
    temperature: float
    words: bool


@dataclass(frozen=True)
class Found:
    """What is said in one window."""

    code: str
    """Of the language; empty where the model knows none."""
    segments: list[Segment]
    n_tokens: int
    rest: Window | None = None
    """What the model did not come to: a window of its own, next in order."""


class Listener(Protocol):
    """A loaded model."""

    def asked(self, job: Transcribe) -> Asked:
        """What it can do of what a job asks; from the preparer's thread. Raises JobError."""
        ...

    def listen(self, windows: Sequence[Window], asked: Sequence[Asked]) -> Generator[None, None, list[Found | None]]:
        """Of each window what is said, None where that is no finite number; gives others a turn in between."""
        ...
