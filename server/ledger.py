"""The books in bytes: one budget, what each model has reserved of it, and how wrong the predictions were. Pure.

The sum of all bookings never exceeds the budget by one byte: a reservation that would is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backends.footprint import Footprint

if TYPE_CHECKING:
    from collections.abc import Mapping


class LedgerError(Exception):
    """A booking that the budget does not allow, or that is not there."""


@dataclass(frozen=True)
class Booking:
    """What one model holds."""

    predicted: Footprint
    booked_bytes: int
    measured_bytes: int | None = None
    measured_parts: Mapping[str, int] | None = None

    @property
    def error_ratio(self) -> float | None:
        """Measured / predicted; None before the measurement."""
        if self.measured_bytes is None or self.predicted.total_bytes == 0:
            return None
        return self.measured_bytes / self.predicted.total_bytes


class Ledger:
    """See the module's text."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._bookings: dict[str, Booking] = {}
        self._residual_bytes: dict[str, int] = {}

    @property
    def budget_bytes(self) -> int:
        """What all models together may hold."""
        return self._budget_bytes

    @property
    def reserved_bytes(self) -> int:
        """What they hold now."""
        return sum(booking.booked_bytes for booking in self._bookings.values())

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self._budget_bytes - self.reserved_bytes

    def booking(self, model: str) -> Booking | None:
        """What a model holds; None when nothing."""
        return self._bookings.get(model)

    def residual_bytes(self, model: str) -> int:
        """How much more than predicted the model took when it was last loaded; 0 when it took less or never was."""
        return self._residual_bytes.get(model, 0)

    def reserve(self, model: str, footprint: Footprint) -> None:
        """Book a model before it is loaded. Raises LedgerError when the budget is too small or it is booked already."""
        if model in self._bookings:
            raise LedgerError(f"model '{model}' is booked already")
        if footprint.total_bytes > self.free_bytes:
            raise LedgerError(f"model '{model}' needs {footprint.total_bytes} bytes, {self.free_bytes} are free")
        self._bookings[model] = Booking(footprint, footprint.total_bytes)

    def settle(self, model: str, measured_bytes: int, parts: Mapping[str, int]) -> Booking:
        """Enter what a loaded model really took.

        The booking grows to it as far as the budget goes and never shrinks, because buffers fill up only in use.
        """
        before = self._bookings[model]
        room = self.free_bytes + before.booked_bytes
        booked = min(max(before.booked_bytes, measured_bytes), room)
        after = replace(before, booked_bytes=booked, measured_bytes=measured_bytes, measured_parts=dict(parts))
        self._bookings[model] = after
        unlearned = before.predicted.total_bytes - self.residual_bytes(model)
        self._residual_bytes[model] = max(0, measured_bytes - unlearned)
        return after

    def release(self, model: str) -> None:
        """Give a model's bytes back; only after its worker has exited."""
        self._bookings.pop(model, None)
