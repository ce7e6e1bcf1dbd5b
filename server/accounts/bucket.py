"""A limit per minute that refills evenly: a token bucket that may be overdrawn. Pure, time is an argument."""

from __future__ import annotations

from typing import Final

_MINUTE_S: Final = 60.0


class Bucket:
    """Holds `per_minute` when full. What is taken may exceed what is there: the rest is owed, and refills first.

    A request costs what it turns out to cost, which is known at its end; so a bucket is overdrawn rather than wrong.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def left(self, now: float) -> float:
        """What is there at `now` (seconds, of one monotonic clock); below zero what is owed."""
        refilled = max(0.0, now - self._at) * self.per_minute / _MINUTE_S
        return min(float(self.per_minute), self._level + refilled)

    def take(self, amount: float, now: float) -> None:
        """Take so much, or give back where it is below zero; never more than a full bucket."""
        self._level = min(float(self.per_minute), self.left(now) - amount)
        self._at = max(now, self._at)

    def wait_s(self, now: float, *, until: float = 1.0) -> float:
        """Seconds until so much is there."""
        missing = min(until, float(self.per_minute)) - self.left(now)
        return max(0.0, missing) * _MINUTE_S / self.per_minute

    def full_in_s(self, now: float) -> float:
        """Seconds until nothing is missing."""
        return self.wait_s(now, until=float(self.per_minute))

    def resized(self, per_minute: int, now: float) -> Bucket:
        """Another limit: what was used of this one is used of that."""
        other = Bucket(per_minute, now)
        other.take(self.per_minute - self.left(now), now)
        return other
