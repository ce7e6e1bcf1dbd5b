"""Budgets by the hours of the day: which limit holds at a moment. Pure but for the default clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from server.settings.hours import minutes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def minute_of_day() -> int:
    """Local time."""
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min


def limit_at(hours: Mapping[str, int], minute: int) -> int | None:
    """The smallest limit in bytes of the spans that a minute of the day lies in; None where it lies in none."""

    def holds(span: str) -> bool:
        begins, ends = minutes_of(span)
        return begins <= minute < ends if begins < ends else not ends <= minute < begins

    return min((n_bytes for span, n_bytes in hours.items() if holds(span)), default=None)


class HourlyBudget:
    """A budget of the bytes that models may have: `fixed` or by `auto`, and no more than the hour allows."""

    def __init__(
        self,
        auto: Callable[[int], int],
        hours: Mapping[str, int],
        *,
        fixed: int | None,
        minute: Callable[[], int] = minute_of_day,
    ) -> None:
        self._auto, self._hours, self._fixed, self._minute = auto, hours, fixed, minute

    def __call__(self, usable_bytes: int) -> int:
        """The budget now."""
        return self._whole(usable_bytes) - self.withheld(usable_bytes)

    def withheld(self, usable_bytes: int) -> int:
        """What it is smaller by, because of the hour."""
        whole = self._whole(usable_bytes)
        limit = limit_at(self._hours, self._minute()) if self._hours else None
        return 0 if limit is None else max(0, whole - limit)

    def is_exact(self, usable_bytes: int) -> bool:
        """Whether the operator wrote it; otherwise it is of what is free, which is never the same for long."""
        return self._fixed is not None or self.withheld(usable_bytes) > 0

    def _whole(self, usable_bytes: int) -> int:
        return self._auto(usable_bytes) if self._fixed is None else self._fixed
