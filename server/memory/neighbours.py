"""What other programs take of a card, look by look: whether it grows, and what is left free for them meanwhile. Pure.

A program that finds the card full fails at once, and an automatic budget only follows what it already has. So growth
that lasts makes the budget smaller ahead of it, and idle models leave. Owns no figures but those it is told.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW_S: Final = 10.0
"""Growth is counted from the least that others held in it."""
_LASTS_S: Final = 1.0
"""Growth for so long is none of a driver that gives a worker's memory back late."""
_SETTLED_S: Final = 60.0
"""Without growth, until the room is the models' again: so that none comes and leaves at every step of a program."""
_LEAST_GROWTH: Final = 1 / 64
"""Of the card; less is a browser's or a desktop's coming and going."""
_MOST_AHEAD: Final = 1 / 2
"""Of the card, is left free by `auto`."""
EVERY_S: Final = 0.5
"""Between two looks while something grows, or seems to."""


class Neighbours:
    """Of one card of so many bytes."""

    def __init__(self, total_bytes: int, headroom_bytes: int | None, *, reserve_bytes: int = 0) -> None:
        """`headroom_bytes`: what the operator wants free for those that grow; None: as much again as they take.

        `reserve_bytes` are left free for others at any time.
        """
        self._total_bytes = total_bytes
        self._configured_bytes = headroom_bytes
        self._reserve_bytes = reserve_bytes
        self._looks: deque[tuple[float, int]] = deque()
        self._more_since: float | None = None
        """When the first look was that found more, and all since."""
        self._grew_at: float | None = None
        self._before_bytes = 0
        """What they held before they grew."""
        self.headroom_bytes = 0
        """What is to be left free for them now."""

    @property
    def held_back_bytes(self) -> int:
        """What the budget is smaller by for that, beyond the reserve."""
        return max(0, self.headroom_bytes - self._reserve_bytes)

    @property
    def uneasy(self) -> bool:
        """Whether the next look should come soon."""
        return self._more_since is not None or self._grew_at is not None

    def look(self, now: float, other_bytes: int) -> None:
        """They hold so much now, in seconds of a monotonic clock."""
        if self._configured_bytes == 0:
            return
        while len(self._looks) > 1 and self._looks[1][0] <= now - _WINDOW_S:
            self._looks.popleft()  # one is kept, however long ago: nothing is looked at while a model is loaded
        least_bytes = min((n_bytes for _, n_bytes in self._looks), default=other_bytes)
        self._looks.append((now, other_bytes))
        if other_bytes - least_bytes < self._step_bytes:
            self._more_since = None
            self._settle(now, other_bytes)
            return
        self._more_since = now if self._more_since is None else self._more_since
        if now - self._more_since >= _LASTS_S:
            self._grow(now, least_bytes, other_bytes)

    def begin_anew(self) -> None:
        """What they hold is counted otherwise from now on: what was seen before says nothing about growth."""
        self._looks.clear()
        self._more_since = None

    @property
    def _step_bytes(self) -> float:
        return self._total_bytes * _LEAST_GROWTH

    def _grow(self, now: float, least_bytes: int, other_bytes: int) -> None:
        if self._grew_at is None:
            self._before_bytes = least_bytes
        self._grew_at = now
        taken_bytes = other_bytes - self._before_bytes
        as_much_again = min(taken_bytes, int(_MOST_AHEAD * self._total_bytes))
        wanted_bytes = as_much_again if self._configured_bytes is None else self._configured_bytes
        self.headroom_bytes = max(self.headroom_bytes, wanted_bytes)

    def _settle(self, now: float, other_bytes: int) -> None:
        """Give the room back once they have stopped growing for a while, or have given back what they took."""
        if self._grew_at is None:
            return
        is_back = other_bytes < self._before_bytes + self._step_bytes
        if is_back or now - self._grew_at >= _SETTLED_S:
            self._grew_at, self.headroom_bytes = None, 0
