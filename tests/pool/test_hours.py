"""The budget by the hours of the day: limits at a moment, and how they are written."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from server.memory.hours import HourlyBudget, limit_at
from server.memory.opening import open_memory
from server.settings.sections import MemorySection

GIB = 2**30


def at(clock: str) -> int:
    return 60 * int(clock[:2]) + int(clock[3:])


def test_the_smallest_limit_of_an_hour_holds_also_over_midnight():
    hours = {"09:00-18:00": 6 * GIB, "12:00-13:00": 2 * GIB, "22:30-06:00": 4 * GIB}
    found = {
        clock: limit_at(hours, at(clock)) for clock in ("08:59", "09:00", "12:30", "18:00", "23:00", "05:59", "06:00")
    }
    assert found == {
        "08:59": None, "09:00": 6 * GIB, "12:30": 2 * GIB, "18:00": None,
        "23:00": 4 * GIB, "05:59": 4 * GIB, "06:00": None,
    }  # fmt: skip


@pytest.mark.parametrize(("fixed", "evening"), [(None, 10 * GIB), (8 * GIB, 8 * GIB)])
def test_a_limit_bounds_what_is_free_or_configured(fixed, evening):
    clock = ["10:00"]
    budget = HourlyBudget(lambda usable: usable, {"09:00-18:00": 6 * GIB}, fixed=fixed, minute=lambda: at(clock[0]))
    assert budget(10 * GIB) == 6 * GIB
    assert budget(5 * GIB) == (5 * GIB if fixed is None else 6 * GIB)
    clock[0] = "20:00"
    assert budget(10 * GIB) == evening


@pytest.mark.parametrize("span", ["9-18", "09:00-24:00", "09:00-09:00", "night"])
def test_what_is_no_span_is_refused(span):
    with pytest.raises(ValidationError, match=r"hours|span|begins|pattern"):
        MemorySection.model_validate({"hours": {span: "6GiB"}})


@pytest.mark.parametrize("limit_mib", [300, 399])
async def test_a_fixed_budget_follows_the_clock_while_the_server_runs(limit_mib):
    """To the byte: an automatic one moves in steps, a limit that lies within a step of it holds all the same."""
    hours = {"00:00-12:00": f"{limit_mib}MiB", "12:00-00:00": f"{limit_mib}MiB"}
    memory = await open_memory(MemorySection.model_validate({"device": "cpu", "budget": "400MiB", "hours": hours}))
    assert memory.ledger.host.budget_bytes == limit_mib << 20
    memory.ledger.host.resize(400 << 20)
    await memory.look()
    assert memory.ledger.host.budget_bytes == limit_mib << 20
    memory.close()
