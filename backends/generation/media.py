"""From the media of a prompt to rows: what is asked of a model that sees or hears, and the prompt's rows in order.

Media are counted first, from what their first bytes say. They are computed once it is known that the prompt fits.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from backends.engine import JobError
from backends.generation.row_layout import MediaRows, Place, RowLayout
from backends.messages import Looked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backends.generation.row_layout import Embedding
    from backends.messages import MediaKind, Medium

PLACEHOLDER = 0
"""What rows of media hold where tokens are listed."""


@dataclass(frozen=True)
class MediaShape:
    """How a medium, or one tile of it, stands in a prompt."""

    n_rows: int
    n_positions: int
    digest: str
    """SHA-256, in hex, of what the encoder is given."""


class Encoded(NamedTuple):
    """What a medium became."""

    tiles: Sequence[Embedding]
    """For each `MediaShape` in order."""
    took_s: float | None
    """Seconds that the encoder took; None where it was encoded before."""


class MediaTower(Protocol):
    """What computes rows of media for a language model."""

    kinds: Sequence[MediaKind]
    leads: bool
    """Its media stand before everything else of a prompt, wherever they are shown."""

    def shapes(self, medium: Medium) -> Sequence[MediaShape | Sequence[int]]:
        """What the medium becomes, in order: its rows, and tokens of text before, between and behind them.

        Raises JobError(unsupported_media) for bytes that are none.
        """
        ...

    def embed(self, medium: Medium) -> Encoded:
        """The rows themselves. Raises JobError."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass
class PromptRows:
    """The rows of one prompt as they are put together."""

    tower: MediaTower | None
    tokens: list[int] = field(default_factory=list)
    media: list[MediaRows] = field(default_factory=list)
    n_media: int = 0
    n_leading: int = 0
    """Rows at the beginning that are of media which lead."""

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
        self.n_media += 1
        with naming(medium, self.n_media):
            parts = self.tower.shapes(medium)
        n_tiles = 0
        for part in parts:
            if isinstance(part, MediaShape):
                place = Place(medium, n_tiles, self.n_media)
                at = self._make_room([PLACEHOLDER] * part.n_rows)
                self.media.append(MediaRows(at, part.n_rows, part.n_positions, part.digest, place))
                n_tiles += 1
            else:
                self._make_room(part)

    def _make_room(self, tokens: Sequence[int]) -> int:
        """Put what is of a medium where media stand; where that is."""
        at = self.n_leading if self.leads else len(self.tokens)
        self.tokens[at:at] = tokens
        self.n_leading += len(tokens) if self.leads else 0
        return at

    @property
    def leads(self) -> bool:
        """Media stand before everything else."""
        return self.tower is not None and self.tower.leads

    @property
    def begins_with_text(self) -> list[int]:
        """The tokens behind leading media."""
        return self.tokens[self.n_leading :]

    def begin_with(self, tokens: Sequence[int]) -> None:
        """Put tokens in front of everything but leading media."""
        at = self.n_leading
        self.tokens[at:at] = tokens
        self.media = [replace(rows, first=rows.first + (len(tokens) if rows.first >= at else 0)) for rows in self.media]

    @property
    def layout(self) -> RowLayout:
        """Which rows are media."""
        return RowLayout(tuple(self.media))


@contextmanager
def naming(medium: Medium, number: int) -> Iterator[None]:
    """Refusals of a medium say which of its prompt it is."""
    try:
        yield
    except JobError as error:
        what = f"{medium.kind} {number} of the prompt ({len(medium.data)} bytes)"
        raise JobError(error.code, f"{what} {error.message}", param=error.param) from None


def computed(layout: RowLayout, tower: MediaTower) -> tuple[RowLayout, Looked]:
    """The layout with the rows of its media, each medium computed once, and what that cost. Raises JobError."""
    rows: list[MediaRows] = []
    took: list[float | None] = []
    number = 0
    embeddings: Sequence[Embedding] = ()
    for media in layout.media:
        place = media.place
        if place is None:
            raise RuntimeError("rows of a medium came without it")
        if place.number != number:
            with naming(place.medium, place.number):
                number, (embeddings, took_s) = place.number, tower.embed(place.medium)
                took.append(took_s)
        rows.append(replace(media, embedding=embeddings[place.tile]))
    encoded = [seconds for seconds in took if seconds is not None]
    return RowLayout(tuple(rows)), Looked(len(took), sum(one.n_rows for one in rows), len(encoded), sum(encoded))


WORDS: dict[MediaKind, str] = {"image": "images", "audio": "sounds"}
