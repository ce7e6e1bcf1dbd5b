"""Who contributes how many tokens to the next forward pass of an engine. Pure planning, no engine types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.generation.pace import Pace
from backends.generation.tiles import TILE

if TYPE_CHECKING:
    from collections.abc import Sequence

AUTO_GAP_STEPS: Final = 18.0
"""`auto` lets a step take so many times as long as one that only decodes."""
LEAST_AUTO_GAP_US: Final = 20_000.0
"""A shorter gap is no gap to anyone."""
MOST_AUTO_GAP_US: Final = 160_000.0
"""A longer one is, and wins hardly any throughput."""
ALONE_US: Final = 250_000.0
"""A step in which nobody decodes: nobody waits for it but who comes in the middle of it."""
GRAIN: Final = TILE
"""Prompts go in multiples of this, and no slower."""
LEAST_TOKENS: Final = 8
"""Of a prompt's short rest, however long it takes."""
_AGEING: Final = 1.0
"""Microseconds of remaining work that each microsecond of waiting makes up for."""


class Demand(NamedTuple):
    """What one sequence wants: a single token when it decodes, the rest of its prompt when it prefills."""

    sequence: int
    n_tokens: int
    decoding: bool
    depth: int = 0
    """Positions that are computed already."""
    waited_us: float = 0.0
    """Since it was ready to be computed."""


class Share(NamedTuple):
    """What one sequence gets in this step."""

    sequence: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Batcher:
    """Decode first, then as many prompt tokens as the time allows that running streams may wait.

    The shortest remaining prompt comes first, and waiting makes up for length, so that long ones end too. Another one
    has a share only where the one before it ends: two halves of a step cost more than the whole.
    """

    max_tokens: int = 512
    """Of one step."""
    max_gap_us: float = 0.0
    """The longest step wished for while others decode; 0: `AUTO_GAP_STEPS` times one that only decodes."""
    pace: Pace = field(default_factory=Pace)
    """What is known about costs; whoever performs the steps tells it."""

    def plan(self, demands: Sequence[Demand], *, room: int | None = None) -> list[Share]:
        """Shares for one step: every decoding sequence one token, then prompts.

        The sum exceeds neither `max_tokens` nor `room` (None: no other bound), and no share is empty.
        """
        most = self.max_tokens if room is None else min(self.max_tokens, room)
        shares = [Share(d.sequence, 1) for d in demands if d.decoding][:most]
        if len(shares) == len(demands):  # the usual step, kept short
            return shares
        n_decode = len(shares)
        left = most - n_decode
        left_us = self._prefill_us(n_decode)
        for demand in sorted((d for d in demands if not d.decoding), key=self._urgency):
            fits = self._fitting(demand, left_us, n_decode=n_decode, first=len(shares) == n_decode)
            n_tokens = min(demand.n_tokens, left, fits)
            if n_tokens <= 0:
                break
            shares.append(Share(demand.sequence, n_tokens))
            if n_tokens < demand.n_tokens:
                break
            left -= n_tokens
            left_us -= self.pace.prefill_us(demand.depth, n_tokens)
        return shares

    def gap_us(self, n_decode: int) -> float:
        """The longest step wished for beside so many decoding sequences."""
        wished = AUTO_GAP_STEPS * self.pace.decode_us(n_decode)
        return self.max_gap_us or min(max(wished, LEAST_AUTO_GAP_US), MOST_AUTO_GAP_US)

    def _prefill_us(self, n_decode: int) -> float:
        if n_decode == 0:
            return max(self.gap_us(1), ALONE_US)
        return self.gap_us(n_decode) - self.pace.decode_us(n_decode)

    def _fitting(self, demand: Demand, left_us: float, *, n_decode: int, first: bool) -> int:
        """Tokens of a prompt that the time is enough for; the first prompt of a step always advances.

        It is rounded to the nearest grain, and the others down, so that a step is longer by half of one at most. A
        rest that fills no grain is not left where it can be helped: it would be computed token by token.
        """
        n_tokens = demand.n_tokens
        if self.pace.token_us(demand.depth) <= 0:
            return (GRAIN if n_decode else 2 * GRAIN) if first else 0
        exact = self.pace.tokens_within(left_us, demand.depth, short=n_tokens <= GRAIN)
        if n_tokens <= GRAIN:
            return n_tokens if n_tokens <= exact else max(exact, min(n_tokens, LEAST_TOKENS)) if first else 0
        whole = GRAIN if n_tokens == GRAIN + 1 else -(-n_tokens // GRAIN) * GRAIN  # a part of one takes as long
        if whole <= exact + (GRAIN // 2 if first else 0):
            return n_tokens
        fits = max(GRAIN, round(exact / GRAIN) * GRAIN) if first else exact // GRAIN * GRAIN
        rest = n_tokens - fits
        if rest > GRAIN + 1:  # one token of it may go with those of decoding sequences
            return fits
        if fits > GRAIN or not first:
            return max(0, fits - GRAIN)
        whole_us, rest_us = (self.pace.prefill_us(demand.depth + n_tokens - n, n) for n in (n_tokens, rest))
        return n_tokens if whole_us < rest_us else fits

    def _urgency(self, demand: Demand) -> float:
        return self.pace.prefill_us(demand.depth, demand.n_tokens) - _AGEING * demand.waited_us
