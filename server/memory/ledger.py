"""The books in bytes: one budget, what each model has reserved of it, and what it was measured to take. Pure.

A reservation that would bring the sum of all bookings above the budget by one byte is refused. Two things can still go
wrong, and `over_bytes` counts both: a budget that shrinks under its bookings, and a load that took more than was left.

Cached prefixes are booked beside the models where they lie in the same memory. They yield: what is free for models
is counted without them, and booked once they have made room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backends.plan import Footprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class LedgerError(Exception):
    """A booking that the budget does not allow, or that is not there."""


@dataclass(frozen=True)
class Booking:
    """What one model holds."""

    predicted: Footprint
    booked_bytes: int
    measured_bytes: int | None = None
    """What it takes once all its buffers are in use; None before the load, and where it can not be measured."""
    measured_parts: Mapping[str, int] | None = None

    @property
    def error_ratio(self) -> float | None:
        """Measured / predicted; None before the measurement."""
        if self.measured_bytes is None or self.predicted.total_bytes == 0:
            return None
        return self.measured_bytes / self.predicted.total_bytes

    @property
    def unbooked_bytes(self) -> int:
        """What the model took although the budget had no room for it."""
        return max(0, (self.measured_bytes or 0) - self.booked_bytes)


class Ledger:
    """See the module's text."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._bookings: dict[str, Booking] = {}
        self._prefix_cache_bytes = 0
        self.on_change: list[Callable[[], None]] = []
        """Called after anything in the books has changed, whatever the cause."""

    @property
    def budget_bytes(self) -> int:
        """What all models together may hold."""
        return self._budget_bytes

    @property
    def reserved_bytes(self) -> int:
        """What models have booked."""
        return sum(booking.booked_bytes for booking in self._bookings.values())

    @property
    def measured_bytes(self) -> int | None:
        """What all models take; None while one of them is not measured."""
        measured = [booking.measured_bytes for booking in self._bookings.values()]
        known = [n_bytes for n_bytes in measured if n_bytes is not None]
        return sum(known) if len(known) == len(measured) else None

    @property
    def prefix_cache_bytes(self) -> int:
        """What is booked for cached prefixes."""
        return self._prefix_cache_bytes

    @property
    def free_bytes(self) -> int:
        """What is left for models, to which cached prefixes yield; 0 while models hold more than the budget."""
        return max(0, self._left_by_models)

    @property
    def unreserved_bytes(self) -> int:
        """What neither models nor cached prefixes have."""
        return max(0, self._left_by_models - self._prefix_cache_bytes)

    @property
    def over_bytes(self) -> int:
        """How much has to leave until what models hold is inside the budget again."""
        return max(0, -self._left_by_models)

    @property
    def _left_by_models(self) -> int:
        unbooked = sum(booking.unbooked_bytes for booking in self._bookings.values())
        return self._budget_bytes - self.reserved_bytes - unbooked

    def resize(self, budget_bytes: int) -> None:
        """Set the budget anew; bookings stay, even above it."""
        self._budget_bytes = max(0, budget_bytes)
        self._changed()

    def booking(self, model: str) -> Booking | None:
        """What a model holds; None when nothing."""
        return self._bookings.get(model)

    def reserve(self, model: str, footprint: Footprint) -> None:
        """Book a model before it is loaded. Raises LedgerError when the budget is too small or it is booked already."""
        if model in self._bookings:
            raise LedgerError(f"model '{model}' is booked already")
        if footprint.total_bytes > self.unreserved_bytes:
            raise LedgerError(f"model '{model}' needs {footprint.total_bytes} bytes, {self.unreserved_bytes} are free")
        self._bookings[model] = Booking(footprint, footprint.total_bytes)
        self._changed()

    def settle(self, model: str, measured_bytes: int, parts: Mapping[str, int]) -> Booking:
        """Put what a loaded model takes with all its buffers in place of what was predicted; 0 means not measured.

        The booking grows as far as the budget goes, further when cached prefixes have made room; what is beyond that
        counts in `over_bytes`.
        """
        before = self._bookings[model]
        if measured_bytes <= 0:
            return before
        room = self.unreserved_bytes + before.booked_bytes
        after = replace(
            before,
            booked_bytes=min(measured_bytes, room),
            measured_bytes=measured_bytes,
            measured_parts=dict(parts),
        )
        self._bookings[model] = after
        self._changed()
        return after

    def book_prefix_cache(self, n_bytes: int) -> None:
        """Book what cached prefixes may take from now on. Raises LedgerError when that is more than is there.

        Models that took more than was left for them get what this gives back.
        """
        if n_bytes > self._prefix_cache_bytes + self.unreserved_bytes:
            raise LedgerError(f"cached prefixes want {n_bytes} bytes, {self.unreserved_bytes} more are free")
        self._prefix_cache_bytes = n_bytes
        for model, booking in list(self._bookings.items()):
            more = min(booking.unbooked_bytes, self._budget_bytes - self.reserved_bytes - n_bytes)
            if more > 0:
                self._bookings[model] = replace(booking, booked_bytes=booking.booked_bytes + more)
        self._changed()

    def release(self, model: str) -> None:
        """Give a model's bytes back; only after its worker has exited."""
        self._bookings.pop(model, None)
        self._changed()

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()
