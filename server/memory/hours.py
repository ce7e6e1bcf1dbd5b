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


def by_hours(
    auto: Callable[[int], int],
    hours: Mapping[str, int],
    *,
    fixed: int | None,
    minute: Callable[[], int] = minute_of_day,
) -> Callable[[int], int]:
    """A budget of the bytes that models may have: `fixed` or by `auto`, and no more than the hour allows."""

    def budget(usable_bytes: int) -> int:
        n_bytes = auto(usable_bytes) if fixed is None else fixed
        limit = limit_at(hours, minute()) if hours else None
        return n_bytes if limit is None else min(n_bytes, limit)

    return budget
