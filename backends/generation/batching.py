"""Who contributes how many tokens to the next step, within the bound on inter-token latency. Pure, no engine types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.generation.pace import Pace
from backends.generation.tiles import TILE, Rows, in_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

AUTO_ITL_STEPS: Final = 18.0
"""`auto` lets a step take so many times as long as one that only decodes."""
LEAST_AUTO_ITL_US: Final = 20_000.0
"""A shorter wait is none to anyone."""
MOST_AUTO_ITL_US: Final = 160_000.0
"""A longer one is, and wins hardly any throughput."""
ALONE_US: Final = 250_000.0
"""A step without decoding sequences: only a job that comes in the middle of it waits for it."""
GRAIN: Final = TILE
"""Prompts go in multiples of this, and no slower."""
LEAST_TOKENS: Final = 8
"""Of a prompt's short rest, however long it takes."""
_AGEING: Final = 1.0
"""Microseconds of remaining work that each microsecond of waiting makes up for."""


class LongStep(NamedTuple):
    """The most that a step computes of one prompt that nothing waits beside."""

    n_tokens: int
    most_us: float
    """Fewer tokens where so many would take longer."""


LONG_STEP: Final = LongStep(256, 1_000_000.0)
"""In passes of 64 tokens a prompt takes 7 % more."""
LONGER_STEP: Final = LongStep(512, 2_000_000.0)
"""Where a step can be ended, which half of it is not waited for: see `lone_prompt`."""


class Demand(NamedTuple):
    """What one sequence wants: a single token when it decodes, the rest of its prompt when it prefills."""

    sequence: int
    n_tokens: int
    decoding: bool
    depth: int = 0
    """Positions that are computed already."""
    waited_us: float = 0.0
    """Since it was ready to be computed."""
    slot: int = 0
    fixed: bool = False
    """Its share may be no larger than what is planned: a prompt that is scored has few rows."""
    whole: bool = False
    """All of it in one step or nothing: rows that see each other."""
    apart: bool = False
    """Rows of a medium: a pass of their own, in which decoding neighbours have no token."""
    hurried: bool = False
    """A long step of its was ended for another's sake, and lost."""


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
    max_itl_us: float = 0.0
    """The longest step wished for while others decode; 0: `AUTO_ITL_STEPS` times one that only decodes."""
    ends_steps: bool = False
    """A step that computes one prompt alone can be ended."""
    pace: Pace = field(default_factory=Pace)
    """What is known about costs; the engine tells it."""

    def plan(
        self,
        demands: Sequence[Demand],
        *,
        room: int | None = None,
        brief: bool = False,
        n_beside: int = 0,
        n_prompts_beside: int = 0,
    ) -> list[Share]:
        """Shares for one step, in order of slots: every decoding sequence one token, then prompts.

        The sum exceeds neither `max_tokens` nor `room` (None: every sequence has cells of its own), and no share is
        empty. With `brief` no step takes longer than beside decoding sequences: one in a hurry may come in the middle
        of it. Cells of their own are computed as one batch where the slots ascend, otherwise at half the speed.
        `n_beside`: decoding sequences without a share in this step, which wait for it; `n_prompts_beside`: prompts.
        """
        most = self.max_tokens if room is None else min(self.max_tokens, room)
        shares = [Share(d.sequence, 1) for d in demands if d.decoding][:most]
        n_decode = len(shares)
        if n_decode < len(demands):  # the usual step is kept short
            lone = len(demands) == 1 and not n_beside and not n_prompts_beside and not brief
            n_decode_beside = n_decode + n_beside
            shares += self._prompts(demands, n_decode=n_decode_beside, left=most - n_decode, brief=brief, lone=lone)
        by_sequence = {demand.sequence: demand for demand in demands}
        shares.sort(key=lambda share: by_sequence[share.sequence].slot)
        return shares if room is not None or len(shares) == n_decode else self._in_tiles(shares, by_sequence)

    def _prompts(self, demands: Sequence[Demand], *, n_decode: int, left: int, brief: bool, lone: bool) -> list[Share]:
        """What prompts get, the most urgent first."""
        shares: list[Share] = []
        waiting = sorted((d for d in demands if not d.decoding), key=self._urgency)
        left_us = self.itl_us(1) if brief and not n_decode else self._prefill_us(n_decode)
        if lone:
            longest = LONGER_STEP if self.ends_steps and not waiting[0].hurried else LONG_STEP
            left_us = max(left_us, min(self.pace.prefill_us(waiting[0].depth, longest.n_tokens), longest.most_us))
        for demand in waiting:
            chunk = self._chunk(demand, left_us, n_decode=n_decode, first=not shares)
            n_tokens = min(demand.n_tokens, left, chunk)
            if n_tokens <= 0 or (demand.whole and n_tokens < demand.n_tokens):
                break
            shares.append(Share(demand.sequence, n_tokens))
            if n_tokens < demand.n_tokens:
                break
            left -= n_tokens
            left_us -= self.pace.prefill_us(demand.depth, n_tokens)
        return shares

    def itl_us(self, n_decode: int) -> float:
        """The longest step wished for beside so many decoding sequences."""
        wished = AUTO_ITL_STEPS * self.pace.decode_us(n_decode)
        return self.max_itl_us or min(max(wished, LEAST_AUTO_ITL_US), MOST_AUTO_ITL_US)

    def _prefill_us(self, n_decode: int) -> float:
        if n_decode == 0:
            return max(self.itl_us(1), ALONE_US)
        return self.itl_us(n_decode) - self.pace.decode_us(n_decode)

    def _chunk(self, demand: Demand, left_us: float, *, n_decode: int, first: bool) -> int:
        """Tokens of a prompt that this step computes: as many as the time is enough for, in whole tiles."""
        n_ahead, depth = demand.n_tokens, demand.depth
        if demand.whole:
            return n_ahead if first or self.pace.prefill_us(depth, n_ahead) <= left_us else 0
        if first and n_decode == 0 and n_ahead <= GRAIN:  # in crumbs it would take many times as long
            return n_ahead
        if self.pace.token_us(depth) <= 0:
            return (GRAIN if n_decode else 2 * GRAIN) if first else 0
        exact = self.pace.tokens_within(left_us, depth, n_ahead=n_ahead, short=n_ahead <= GRAIN)

        def whole_is_cheaper() -> bool:
            whole_us, rest_us = (self.pace.prefill_us(depth + n_ahead - n, n) for n in (n_ahead, n_ahead - GRAIN))
            return whole_us < rest_us

        return chunk_tokens(n_ahead, exact, first=first, whole_is_cheaper=whole_is_cheaper)

    def _in_tiles(self, shares: list[Share], by_sequence: Mapping[int, Demand]) -> list[Share]:
        """The same in whole tiles of llama.cpp's attention; see `tiles`."""
        together: list[tuple[int, Rows]] = []
        apart: list[tuple[int, Rows]] = []
        for share in shares:
            demand = by_sequence[share.sequence]
            stays = demand.fixed or demand.whole
            rows = Rows(demand.slot, share.n_tokens, share.n_tokens if stays else demand.n_tokens)
            (apart if demand.apart else together).append((share.sequence, rows))
        given: dict[int, int] = {}
        for passed in (together, *([one] for one in apart)):
            extra = self.max_tokens - sum(given.get(share.sequence, share.n_tokens) for share in shares)
            tiles = in_tiles([rows for _, rows in passed], extra=extra)
            given |= zip((sequence for sequence, _ in passed), tiles, strict=True)
        return [Share(share.sequence, given[share.sequence]) for share in shares]

    def _urgency(self, demand: Demand) -> float:
        return self.pace.prefill_us(demand.depth, demand.n_tokens) - _AGEING * demand.waited_us


def chunk_tokens(n_ahead: int, exact: int, *, first: bool, whole_is_cheaper: Callable[[], bool]) -> int:
    """How many of a prompt's next `n_ahead` tokens a step computes that has the time for `exact` of them.

    A prompt is cut where whole tiles lie before the cut, and a whole one and a token more behind it: the token may go
    with those of decoding sequences. The first prompt of a step always advances, and half a tile more than the time
    allows is no harm: so it is cut at the nearest place; others at the last one before.
    """
    if n_ahead <= GRAIN:
        least = min(n_ahead, LEAST_TOKENS) if first else 0
        return n_ahead if n_ahead <= exact else max(min(exact, n_ahead), least) if first else 0
    most = exact + (GRAIN // 2 if first else 0)
    whole = GRAIN if n_ahead == GRAIN + 1 else -(-n_ahead // GRAIN) * GRAIN  # a part of one takes as long
    if whole <= most:
        return n_ahead
    cuts = range(GRAIN, n_ahead - GRAIN, GRAIN)
    fitting = cuts[: most // GRAIN]
    if fitting or not first:
        return fitting[-1] if fitting else 0
    return GRAIN if cuts or not whole_is_cheaper() else n_ahead
