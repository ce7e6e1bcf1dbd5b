"""The books: no booking beyond the budget, and what a measurement teaches."""

from __future__ import annotations

import pytest

from backends.footprint import Footprint
from server.ledger import Ledger, LedgerError


def footprint(n_bytes: int) -> Footprint:
    return Footprint(weights=n_bytes, kv=0, compute=0, runtime=0)


def test_booking_to_the_last_byte_is_allowed_and_one_more_is_not() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(60))

    with pytest.raises(LedgerError, match="needs 41 bytes, 40 are free"):
        ledger.reserve("b", footprint(41))
    ledger.reserve("b", footprint(40))

    assert (ledger.reserved_bytes, ledger.free_bytes) == (100, 0)


def test_model_is_booked_once() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(10))
    with pytest.raises(LedgerError, match="booked already"):
        ledger.reserve("a", footprint(10))


def test_released_bytes_are_free_and_releasing_twice_is_harmless() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(100))
    ledger.release("a")
    ledger.release("a")
    assert ledger.free_bytes == 100


def test_measurement_above_the_prediction_grows_the_booking_and_is_remembered() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(50))

    booking = ledger.settle("a", 65, {"weights": 65})

    assert booking.error_ratio == 1.3
    assert ledger.reserved_bytes == 65
    assert ledger.residual_bytes("a") == 15


def test_measurement_beyond_the_budget_does_not_break_the_books() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(50))
    ledger.reserve("b", footprint(40))

    ledger.settle("a", 500, {})

    assert ledger.reserved_bytes == 100
    assert ledger.residual_bytes("a") == 450


def test_measurement_below_the_prediction_keeps_the_booking_and_forgets_the_residual() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(50))
    ledger.settle("a", 60, {})
    ledger.release("a")

    ledger.reserve("a", footprint(50 + ledger.residual_bytes("a")))
    ledger.settle("a", 45, {})

    assert ledger.reserved_bytes == 60
    assert ledger.residual_bytes("a") == 0
