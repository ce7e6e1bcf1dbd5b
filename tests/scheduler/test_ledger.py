"""The books: no booking beyond the budget, and what a measurement teaches."""

from __future__ import annotations

import pytest

from backends.plan import Footprint, Parts
from server.memory.ledger import Ledger, LedgerError


def footprint(n_bytes: int) -> Footprint:
    return Footprint(host=Parts(n_bytes))


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


def test_measurement_takes_the_place_of_the_prediction_whether_above_or_below() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(50))
    ledger.reserve("b", footprint(20))

    above, below = ledger.settle("a", 65, {"weights": 65}), ledger.settle("b", 15, {})

    assert (above.error_ratio, below.error_ratio) == (1.3, 0.75)
    assert (ledger.reserved_bytes, ledger.free_bytes) == (80, 20)


def test_measurement_beyond_the_budget_is_pressure() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(50))
    ledger.reserve("b", footprint(40))

    ledger.settle("a", 75, {})

    assert ledger.reserved_bytes == 100
    assert (ledger.free_bytes, ledger.over_bytes) == (0, 15)
    ledger.release("b")
    assert (ledger.free_bytes, ledger.over_bytes) == (25, 0)


def test_load_that_nobody_measured_keeps_its_prediction() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(50))

    assert ledger.settle("a", 0, {}).error_ratio is None
    assert ledger.reserved_bytes == 50


def test_budget_that_shrinks_leaves_bookings_above_it_and_refuses_new_ones() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(60))

    ledger.resize(40)

    assert (ledger.reserved_bytes, ledger.free_bytes, ledger.over_bytes) == (60, 0, 20)
    with pytest.raises(LedgerError, match="0 are free"):
        ledger.reserve("b", footprint(1))


def test_budget_that_grows_back_can_be_used() -> None:
    ledger = Ledger(100)
    ledger.reserve("a", footprint(60))
    ledger.resize(40)
    ledger.resize(100)

    ledger.reserve("b", footprint(40))

    assert (ledger.free_bytes, ledger.over_bytes) == (0, 0)
