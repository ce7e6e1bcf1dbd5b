"""One token stream of an engine and the job it belongs to: plain records, changed by the engine alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backends.constraints import TokenMask
    from backends.gguf.sampling import Sampler
    from backends.messages import Generate
    from backends.text import TextStream


@dataclass(frozen=True, slots=True)
class PreparedGenerate:
    """A `Generate` with its prompt as tokens and its length decided."""

    job: Generate
    prompt: NDArray[np.int32]
    limit: int
    """Tokens each choice may have."""
    thinking: bool
    echo: str = ""
    """What every choice begins with."""
    omitted: int = 0
    """Files of a fill-in-the-middle prompt that were left out."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


@dataclass(slots=True)
class Request:
    """One running job: what its choices share."""

    job: Generate
    prompt: NDArray[np.int32]
    limit: int
    unstarted: list[int]
    """Choices that have no sequence yet, in order."""
    n_open: int
    """Choices that have not finished."""
    state: NDArray[np.uint8] | None = None
    """The computed prompt, kept while choices wait for a slot."""
    completion_tokens: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """One token stream in one slot of the context."""

    request: Request
    index: int
    slot: int
    sampler: Sampler
    text: TextStream
    n_past: int = 0
    """Positions computed."""
    token: int = -1
    """The token to compute next; -1 while the prompt is not done."""
    n_generated: int = 0
    n_unsent: int = 0
    """Tokens generated since the last delta."""
    masks: list[TokenMask] = field(default_factory=list)
