"""What forward passes cost on this machine, learned from those that were made. Pure: durations are told, not taken.

A step takes what its decoding sequences take, for every chunk of a prompt what a pass over one token takes, and for
each of its tokens `a + b * depth` microseconds: attention reads everything before it. A chunk that fills no tile of
attention has a line of its own: on a processor its tokens go one by one, and cost several times as much at some depth.
All are followed with forgetting, so that a machine that gets slower is believed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.generation.tiles import TILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NEWEST_SHARE: Final = 0.1
_FORGET: Final = 0.95
"""Of the weight of all older observations, per observation of weight 1."""
_USUAL_TOKENS: Final = 128
"""A chunk of fewer has less weight: it pays more per token than the usual one does."""
FEW_TOKENS: Final = 8
"""So few cost no more than as many steps of decoding, whatever a line of longer ones says."""
_MOST_SURPRISE: Final = 2.0
"""A pause of the whole machine is no property of the model: a value above so many times the forecast is cut there."""


class Chunk(NamedTuple):
    """Prompt tokens of one sequence in one step, and how many positions lie before them."""

    depth: int
    n_tokens: int


@dataclass
class Line:
    """A straight line through weighted points, the newest counting most."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float, weight: float = 1.0) -> None:
        """One more point."""
        kept = _FORGET**weight
        for name, value in (("weight", 1.0), ("x", x), ("y", y), ("xx", x * x), ("xy", x * y)):
            setattr(self, name, getattr(self, name) * kept + value * weight)

    def at(self, x: float) -> float:
        """The line's height, never sloping down; 0 before the first point."""
        if self.weight == 0.0:
            return 0.0
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        spread = self.xx / self.weight - mean_x * mean_x
        slope = max(0.0, (self.xy / self.weight - mean_x * mean_y) / spread) if spread > 1.0 else 0.0
        return max(mean_y + slope * (x - mean_x), mean_y / 4)


@dataclass
class Pace:
    """See the module's text."""

    _decode_us: dict[int, float] = field(default_factory=dict)
    """By the number of sequences."""
    _token_us: Line = field(default_factory=Line)
    _short_us: Line = field(default_factory=Line)
    """The same for chunks of less than a tile."""

    def decode_us(self, n_sequences: int) -> float:
        """A step in which so many sequences decode and nothing else happens; 0 while there was none."""
        if not self._decode_us or n_sequences == 0:
            return 0.0
        return self._decode_us[min(self._decode_us, key=lambda known: abs(known - n_sequences))]

    def token_us(self, depth: float) -> float:
        """One prompt token at that depth, without the pass it is in; 0 while there was none."""
        return self._line(TILE).at(depth)

    def prefill_us(self, depth: int, n_tokens: int) -> float:
        """A chunk of so many prompt tokens from that depth on."""
        return self.decode_us(1) + n_tokens * self._line(n_tokens).at(depth + n_tokens / 2)

    def tokens_within(self, us: float, depth: int, *, n_ahead: int, short: bool = False) -> int:
        """How many prompt tokens from that depth on take no longer, `short` of a tile or in whole ones.

        There are `n_ahead` of them: what a line foretells far behind them is no matter of theirs. More than that is no
        exact number. Not for when nothing is known.
        """
        line = self._line(0 if short else TILE)
        left_us = max(0.0, us - self.decode_us(1))
        at_first = min(left_us / line.at(depth), n_ahead)
        return int(left_us / line.at(depth + at_first / 2))

    def begin_at(self, n_known: int, size: int) -> int:
        """Where to begin computing a prompt that is known so far: earlier, where a whole tile is the cheaper rest."""
        whole = size - TILE - 1  # one goes with those of decoding sequences
        if whole >= n_known or whole < TILE or size - n_known <= FEW_TOKENS:
            return n_known
        return whole if self.prefill_us(whole, size - whole) < self.prefill_us(n_known, size - n_known) else n_known

    def learn(self, *, n_decode: int, chunks: Iterable[Chunk], duration_us: float) -> None:
        """Take in a step; `n_decode` counts the sequences that only decoded."""
        chunks = list(chunks)
        if not chunks:
            self.learn_decode(n_decode, duration_us)
            return
        if n_decode and not self._decode_us:
            return
        n_passes = len({chunk.n_tokens for chunk in chunks})  # those of one length go together
        beside_us = self.decode_us(n_decode) + n_passes * self.decode_us(1)
        short = [chunk for chunk in chunks if chunk.n_tokens < TILE]
        whole = [chunk for chunk in chunks if chunk.n_tokens >= TILE]
        if short and whole:
            beside_us += sum(c.n_tokens * self._short_us.at(c.depth + c.n_tokens / 2) for c in short)
        left_us = duration_us - min(beside_us, 0.75 * duration_us)
        self._learn_chunks(self._token_us if whole else self._short_us, whole or short, left_us)

    def _line(self, n_tokens: int) -> Line:
        """That of a chunk of so many tokens; the other one where it has no point yet."""
        one, other = (self._short_us, self._token_us) if n_tokens < TILE else (self._token_us, self._short_us)
        return one if one.weight else other

    @staticmethod
    def _learn_chunks(line: Line, chunks: Sequence[Chunk], duration_us: float) -> None:
        n_tokens = sum(chunk.n_tokens for chunk in chunks)
        middle = sum((chunk.depth + chunk.n_tokens / 2) * chunk.n_tokens for chunk in chunks) / n_tokens
        each, known = duration_us / n_tokens, line.at(middle)
        told = min(max(each, known / _MOST_SURPRISE), known * _MOST_SURPRISE) if known else each
        line.add(middle, told, min(1.0, n_tokens / _USUAL_TOKENS))

    def learn_decode(self, n_decode: int, duration_us: float) -> None:
        """Take in a step in which so many sequences decoded and nothing else happened."""
        known = self._decode_us.get(n_decode)
        if known is None:
            self._decode_us[n_decode] = duration_us
            return
        told = min(duration_us, known * _MOST_SURPRISE)
        self._decode_us[n_decode] = known + _NEWEST_SHARE * (told - known)

    def learn_at_most(self, n_decode: int, duration_us: float) -> None:
        """Take in that a step with so many sequences, and more rows than theirs, took no longer."""
        known = self._decode_us.get(n_decode, 0.0)
        if duration_us < known:
            share = 1.0 if duration_us < known / _MOST_SURPRISE else _NEWEST_SHARE
            self._decode_us[n_decode] = known + share * (duration_us - known)
