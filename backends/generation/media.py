"""From the media of a prompt to rows: what is asked of a model that sees or hears, and the prompt's rows in order.

No model here has a tower: then media are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from backends.engine import JobError
from backends.generation.row_layout import MediaRows, RowLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import MediaKind, Medium

PLACEHOLDER = 0
"""What rows of media hold where tokens are listed."""


@dataclass(frozen=True)
class MediaShape:
    """How a medium stands in a prompt."""

    n_rows: int
    n_positions: int
    digest: str
    """SHA-256, in hex, of what the encoder is given: two files may hold the same picture."""
    before: Sequence[int] = ()
    """Tokens of text that announce it."""
    after: Sequence[int] = ()


class MediaTower(Protocol):
    """What computes rows of media for a language model."""

    kinds: Sequence[MediaKind]

    def shape(self, medium: Medium) -> MediaShape:
        """Read and check the medium. Raises JobError(unsupported_media) for bytes that are none."""
        ...


@dataclass
class PromptRows:
    """The rows of one prompt as they are put together."""

    tower: MediaTower | None
    tokens: list[int] = field(default_factory=list)
    media: list[MediaRows] = field(default_factory=list)

    def add(self, medium: Medium) -> None:
        """Append a medium. Raises JobError where the model reads none of its kind."""
        if self.tower is None or medium.kind not in self.tower.kinds:
            reads = "text alone" if self.tower is None else f"text and {', '.join(self.tower.kinds)}"
            raise JobError(
                "unsupported_media",
                f"this model reads {reads}, and takes no {WORDS[medium.kind]}. hint: send its text, or name a model "
                "that does",
                param="prompt",
            )
        shape = self.tower.shape(medium)
        self.tokens += shape.before
        self.media.append(MediaRows(len(self.tokens), shape.n_rows, shape.n_positions, shape.digest))
        self.tokens += [PLACEHOLDER] * shape.n_rows
        self.tokens += shape.after

    def begin_with(self, tokens: Sequence[int]) -> None:
        """Put tokens in front of everything."""
        self.tokens[:0] = tokens
        self.media = [MediaRows(m.first + len(tokens), m.n_rows, m.n_positions, m.digest) for m in self.media]

    @property
    def layout(self) -> RowLayout:
        """Which rows are media."""
        return RowLayout(tuple(self.media))


WORDS: dict[MediaKind, str] = {"image": "images", "audio": "sounds"}
