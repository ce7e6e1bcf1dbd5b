"""The ledger: no reservation beyond a budget, and what a measurement teaches."""

from __future__ import annotations

from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.plan import Amount, Footprint, Parts
from server.memory.ledger import Ledger, LedgerError, Measured, Tenant, TenantKind


def footprint(n_bytes: int) -> Footprint:
    return Footprint(host=Parts(n_bytes))


def test_reserving_to_the_last_byte_is_allowed_and_one_more_is_not() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(60))

    with pytest.raises(LedgerError, match="needs 41 bytes, 40 are free"):
        ledger.reserve(Tenant("b"), footprint(41))
    ledger.reserve(Tenant("b"), footprint(40))

    assert (ledger.host.reserved_bytes, ledger.host.free_bytes) == (100, 0)


def test_tenant_has_one_reservation() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(10))
    with pytest.raises(LedgerError, match="has its reservation already"):
        ledger.reserve(Tenant("a"), footprint(10))


def test_released_bytes_are_free_and_releasing_twice_is_harmless() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(100))
    ledger.release(Tenant("a"))
    ledger.release(Tenant("a"))
    assert ledger.host.free_bytes == 100


def test_measurement_takes_the_place_of_the_prediction_whether_above_or_below() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(50))
    ledger.reserve(Tenant("b"), footprint(20))

    above, below = (
        ledger.settle(Tenant("a"), host=Measured(65, {"weights": 65})),
        ledger.settle(Tenant("b"), host=Measured(15, {})),
    )

    assert (above.host.error_ratio, below.host.error_ratio) == (1.3, 0.75)
    assert (ledger.host.reserved_bytes, ledger.host.free_bytes) == (80, 20)


def test_measurement_beyond_the_budget_is_pressure() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(50))
    ledger.reserve(Tenant("b"), footprint(40))

    ledger.settle(Tenant("a"), host=Measured(75, {}))

    assert ledger.host.reserved_bytes == 100
    assert (ledger.host.free_bytes, ledger.host.over_bytes) == (0, 15)
    ledger.release(Tenant("b"))
    assert (ledger.host.free_bytes, ledger.host.over_bytes) == (25, 0)


def test_load_that_was_not_measured_keeps_its_prediction() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(50))

    assert ledger.settle(Tenant("a"), host=Measured(0, {})).host.error_ratio is None
    assert ledger.host.reserved_bytes == 50


def test_budget_that_shrinks_leaves_reservations_above_it_and_refuses_new_ones() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(60))

    ledger.host.resize(40)

    assert (ledger.host.reserved_bytes, ledger.host.free_bytes, ledger.host.over_bytes) == (60, 0, 20)
    with pytest.raises(LedgerError, match="0 are free"):
        ledger.reserve(Tenant("b"), footprint(1))


def test_budget_that_grows_back_can_be_used() -> None:
    ledger = Ledger(Amount(host=100))
    ledger.reserve(Tenant("a"), footprint(60))
    ledger.host.resize(40)
    ledger.host.resize(100)

    ledger.reserve(Tenant("b"), footprint(40))

    assert (ledger.host.free_bytes, ledger.host.over_bytes) == (0, 0)


def both(device: int, host: int) -> Footprint:
    return Footprint(Parts(device), Parts(host))


def test_each_memory_has_its_last_byte_and_a_refusal_takes_nothing_of_the_other() -> None:
    ledger = Ledger(Amount(100, 50), has_card=True)
    ledger.reserve(Tenant("a"), both(60, 20))

    with pytest.raises(LedgerError, match="needs 31 bytes of host memory, 30 are free"):
        ledger.reserve(Tenant("b"), both(10, 31))
    with pytest.raises(LedgerError, match="needs 41 bytes on the card, 40 are free"):
        ledger.reserve(Tenant("b"), both(41, 1))
    assert ledger.free == Amount(40, 30)

    ledger.reserve(Tenant("b"), both(40, 30))
    assert (ledger.free, ledger.over) == (Amount(), Amount())


def test_each_memory_is_measured_by_itself() -> None:
    ledger = Ledger(Amount(100, 50), has_card=True)
    ledger.reserve(Tenant("a"), both(60, 20))

    after = ledger.settle(Tenant("a"), host=Measured(30, {"runtime": 30}))

    assert (after.device.error_ratio, after.host.error_ratio) == (None, 1.5)
    assert after.reserved == Amount(60, 30)
    assert ledger.settle(Tenant("a"), device=Measured(110)).reserved == Amount(100, 30)
    assert ledger.over == Amount(10, 0)


def test_tenants_of_other_kinds_hold_bytes_beside_a_model_of_the_same_name() -> None:
    ledger = Ledger(Amount(100, 50), has_card=True)
    for kind in get_args(TenantKind):
        ledger.reserve(Tenant("qwen", kind, priority=1), both(10, 5))

    assert ledger.free == Amount(60, 30)
    ledger.release(Tenant("qwen", "lease"))
    assert ledger.free == Amount(70, 35)
    assert ledger.reservation(Tenant("qwen", "batch", priority=7)) is not None, "a priority tells no tenants apart"


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle", "release", "prefix cache", "budget"]),
        st.sampled_from("abcd"),
        st.integers(0, 70),
        st.integers(0, 40),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(ACTS)
def test_no_act_brings_either_memory_above_its_budget_by_a_byte(acts: list[tuple[str, str, int, int]]) -> None:
    ledger = Ledger(Amount(100, 50), has_card=True)
    for what, name, device, host in acts:
        before, tenant = ledger.free, Tenant(name)
        held = ledger.reservation(tenant)
        with suppress(LedgerError):
            match what:
                case "reserve":
                    ledger.reserve(tenant, both(device, host))
                    assert held is None
                    assert Amount(device, host).within(before)
                case "settle" if held is not None:
                    ledger.settle(tenant, device=Measured(device), host=Measured(host))
                case "release":
                    ledger.release(tenant)
                case "prefix cache":
                    ledger.host.reserve_prefix_cache(host)
                case "budget":
                    ledger.device.resize(100 - device)
                    ledger.device.resize(100)
        for account in (ledger.device, ledger.host):
            assert account.reserved_bytes + account.prefix_cache_bytes <= account.budget_bytes
            assert not (account.free_bytes and account.over_bytes)
