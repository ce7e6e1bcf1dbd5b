"""A lease in the making holds what it was given so far: what comes meanwhile waits; one that fails keeps nothing."""

from __future__ import annotations

import asyncio

import pytest

from backends.plan import Footprint, Parts
from server.memory.ledger import Measured, Tenant
from server.pool import leases, room
from tests.many.conftest import BIG, MIB, Fleet, FleetMaker, fleet, ok
from tests.pool.conftest import read, running, until
from tests.present import present

__all__ = ["fleet"]


async def three(make: FleetMaker, *, prefix_cache_mib: int = 0) -> Fleet:
    """Room for two of three, which are loaded and idle."""
    memory = {"prefix_cache": prefix_cache_mib * MIB}
    made = await make(dict.fromkeys("abc", BIG), budget_mib=700, sections={"memory": memory})
    for name in "ab":
        assert ok(await made.ask(name, "hi"))
    return made


def reserved(made: Fleet) -> int:
    memory = made.pool.status().memory
    assert memory.reserved_bytes <= memory.budget_bytes
    return memory.reserved_bytes


async def test_a_load_that_comes_while_models_leave_does_not_take_what_is_lent(fleet: FleetMaker) -> None:
    made = await three(fleet)
    lending = asyncio.create_task(made.pool.leases.lend(650 * MIB, seconds=60, name="test"))
    while made.state("b") == "ready":  # noqa: ASYNC110 - their processes take longer to end
        await asyncio.sleep(0)

    waiting = asyncio.create_task(read(made.submit("c", "hi")))

    lease = await lending
    assert reserved(made) == 650 * MIB
    assert made.state("c") == "unloaded"
    made.pool.leases.end(lease.id)
    assert ok(await waiting)


async def test_cached_prefixes_leave_for_what_models_do_not_give(fleet: FleetMaker) -> None:
    made = await three(fleet, prefix_cache_mib=100)
    assert made.pool.status().memory.prefix_cache_reserved_bytes > 50 * MIB

    await made.pool.leases.lend(350 * MIB, seconds=60, name="test")

    told = made.pool.status().memory
    assert (told.reserved_bytes, made.state("b")) == (650 * MIB, "ready")
    assert told.reserved_bytes + told.prefix_cache_reserved_bytes <= told.budget_bytes
    (lease,) = made.pool.leases.all
    made.pool.leases.end(lease.id)


@pytest.mark.parametrize("given_up", [False, True], ids=["refused", "given up"])
async def test_nothing_is_kept_of_a_lease_that_did_not_come_about(
    fleet: FleetMaker, given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await three(fleet)
    if not given_up:
        monkeypatch.setattr(room, "WITHIN_S", 0.2)
    lending = asyncio.create_task(made.pool.leases.lend(700 * MIB, seconds=60, name="test"))
    await asyncio.sleep(0)  # it has chosen both, and one of them is at work before it is told to leave
    working = await running(made, "b")
    if given_up:
        await until(lambda: made.state("a") == "unloaded")
        assert reserved(made) == 700 * MIB
        lending.cancel()
    with pytest.raises(asyncio.CancelledError if given_up else leases.LeaseRefusedError):
        await lending

    assert reserved(made) < 400 * MIB
    assert made.pool.leases.all == []
    assert ok(await made.ask("c", "hi"))
    working.cancel()


async def test_a_refusal_tells_of_the_hour(fleet: FleetMaker) -> None:
    memory = {"prefix_cache": 0, "hours": dict.fromkeys(("00:00-12:00", "12:00-00:00"), str(400 * MIB))}
    made = await fleet({"a": BIG}, budget_mib=700, sections={"memory": memory})
    with pytest.raises(leases.LeaseRefusedError) as refused:
        await made.pool.leases.lend(500 * MIB, seconds=60, name="test")
    assert str(refused.value) == (
        "500 MiB cannot be lent: of the budget of 400 MiB at this hour (300 MiB less than at others) there are 400 MiB "
        "free. hint: wait until the budget is larger again, or ask for 400 MiB at most"
    )


async def test_what_a_model_took_beyond_its_reservation_is_in_the_sums(fleet: FleetMaker) -> None:
    """Given an idle model and one at work, which took more than the budget had, then what is told adds up."""
    made = await three(fleet)
    account = made.pool._parts.memory.ledger.host
    working = await running(made, "a")
    for name, more in (("a", 110 * MIB), ("b", 30 * MIB)):
        reserved_bytes = present(account.holding(Tenant(name))).reserved_bytes
        account.settle(Tenant(name), Measured(reserved_bytes + more))
    assert account.over_bytes == 40 * MIB

    with pytest.raises(leases.LeaseRefusedError) as refused:
        await made.pool.leases.lend(400 * MIB, seconds=60, name="test")

    assert str(refused.value) == (
        "400 MiB cannot be lent: of the budget of 700 MiB there are 0 B free, 330 MiB held by idle models; 410 MiB are "
        "held by models that work, load or are pinned; that is 40 MiB more than the budget. hint: wait until the "
        "others are idle, or ask for 290 MiB at most"
    )
    lease = await made.pool.leases.lend(290 * MIB, seconds=60, name="test")
    made.pool.leases.end(lease.id)
    working.cancel()


@pytest.mark.parametrize("working", [True, False])
async def test_a_training_job_leaves_for_a_lease_before_any_model_does(fleet: FleetMaker, working: bool) -> None:
    """Given a job beside a model, when what is free and what the job gives back are enough, then the model stays."""
    made = await fleet({"a": BIG}, budget_mib=700)
    stream = await running(made, "a")
    if not working:
        stream.cancel()
        await until(lambda: not made.pool.status().models[0].busy)
    training = made.pool.training
    await training.enter("job", Footprint(host=Parts(weights=250 * MIB)), training.go)

    lease = await made.pool.leases.lend(350 * MIB, seconds=60, name="test")

    assert not training.held
    assert made.state("a") == "ready"
    made.pool.leases.end(lease.id)
    stream.cancel()


async def test_so_many_models_leave_that_what_was_taken_beyond_the_budget_is_made_good(fleet: FleetMaker) -> None:
    """Given one at work that took more than the budget had, when the bytes of one idle model would do but for that."""
    made = await fleet(dict.fromkeys("abc", 200), budget_mib=700)
    for name in "bc":
        assert ok(await made.ask(name, "hi"))
    working = await running(made, "a")
    account = made.pool._parts.memory.ledger.host
    account.settle(Tenant("a"), Measured(380 * MIB))
    assert account.over_bytes == 80 * MIB

    lease = await made.pool.leases.lend(150 * MIB, seconds=60, name="test")

    assert [made.state(name) for name in "abc"] == ["ready", "unloaded", "unloaded"]
    made.pool.leases.end(lease.id)
    working.cancel()
