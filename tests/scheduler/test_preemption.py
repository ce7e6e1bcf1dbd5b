"""Jobs that run while their model is to grow: how long they may go on, and how they come back. In pure time."""

from __future__ import annotations

from server.scheduling.decisions import Abort, Dispatch, Grow, Load, ModelState, Preempt, Reject, Unload
from tests.scheduler.test_growth import LONG, LONGER, Table, of

LOAD_S = 4.0


def busy(*others: str) -> Table:
    """A loaded model that took `LOAD_S` to load, runs these jobs, and is to grow for another."""
    table = Table(100)
    (load,) = table.scheduler.submit(others[0], "a", sequences=1, now=table.now)
    assert isinstance(load, Load)
    table.books.reserve("a")
    table.now += LOAD_S
    table.follow(table.scheduler.on_ready("a", parallel=2, now=table.now, context=8192))
    return table


def test_running_jobs_go_on_for_as_long_as_the_load_will_hold_them_up() -> None:
    table = busy("j1")
    table.ask("j2")

    assert table.too_long("j2", LONG) == [Grow("j2", "a", LONG, running=1, patience_s=LOAD_S)]
    assert table.scheduler.next_deadline() == table.now + LOAD_S
    assert table.tick(LOAD_S - 0.1) == []
    assert table.tick(0.1) == [Preempt("j1", "a")]
    assert table.tick(60.0) == []  # once: one that cannot be resumed goes on


def test_the_more_wait_the_sooner() -> None:
    table = busy("j1")
    table.ask("j2")
    for number in range(3):
        table.scheduler.submit(f"w{number}", "a", sequences=1, now=table.now)

    (grow,) = table.too_long("j2", LONG)

    assert grow == Grow("j2", "a", LONG, running=1, patience_s=LOAD_S / 4)


def test_a_preempted_job_comes_back_with_the_load_before_any_younger_one() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)
    table.ask("j3")
    table.tick(LOAD_S)

    told = table.follow(table.scheduler.on_preempted("j1", table.now))

    assert told == [
        Unload("a", "growth"), Load("a", 0, LONG), Dispatch("j1", "a"), Dispatch("j2", "a"),
    ]  # fmt: skip
    assert table.end("j1")[-1] == Dispatch("j3", "a")


def test_who_ends_in_time_is_not_preempted() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)

    assert of(table.end("j1"), Load) == [Load("a", 0, LONG)]
    assert not of(table.tick(LOAD_S), Preempt)


def test_one_that_cannot_be_resumed_is_waited_for() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)
    table.tick(LOAD_S)

    assert table.scheduler.state("a") is ModelState.DRAINING
    assert of(table.end("j1"), Load) == [Load("a", 0, LONG)]


def test_a_preempted_job_waits_as_long_as_its_own_time_allows() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)
    table.tick(LOAD_S)
    (unload,) = table.scheduler.on_preempted("j1", table.now)
    assert unload == Unload("a", "growth")
    table.books.release("a")
    table.books.holders["b"] = table.books.need("b", smaller_by=0)  # type: ignore[assignment]
    table.books.budget = 60
    assert not of(table.scheduler.on_gone("a", now=table.now), Load)

    told = table.tick(61.0)
    assert [reject.job_id for reject in told if isinstance(reject, Reject)] == ["j2"]  # of those that had begun none
    told = table.tick(600.0)
    assert [reject.job_id for reject in told if isinstance(reject, Reject)] == ["j1"]


def test_a_client_that_leaves_between_two_loads_is_let_go() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)
    table.tick(LOAD_S)
    table.scheduler.on_preempted("j1", table.now)

    (reject,) = table.scheduler.cancel("j1", table.now)

    assert reject == Reject("j1", "cancelled", "the request was cancelled")


def test_a_cancelled_job_is_not_preempted() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)
    assert isinstance(table.scheduler.cancel("j1", table.now)[0], Abort)

    assert table.tick(LOAD_S) == []


def test_the_server_that_drains_says_so_to_a_job_that_was_just_preempted() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)
    table.tick(LOAD_S)
    table.scheduler.drain(table.now)

    (reject, unload) = table.scheduler.on_preempted("j1", table.now)

    assert reject == Reject("j1", "draining", "the server is shutting down")
    assert unload == Unload("a", "growth")


def test_a_server_that_drains_preempts_none() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONG)

    assert of(table.scheduler.drain(table.now), Reject) == [Reject("j2", "draining", "the server is shutting down")]

    deadline = table.scheduler.next_deadline()
    assert deadline is not None
    assert deadline > table.now + LOAD_S
    assert table.tick(LOAD_S) == []
    assert table.end("j1") == [Unload("a", "growth")]


def test_without_memory_for_the_context_a_preempted_job_goes_on_with_what_there_was() -> None:
    table = busy("j1")
    table.ask("j2")
    table.too_long("j2", LONGER)
    table.tick(LOAD_S)
    table.scheduler.on_preempted("j1", table.now)
    table.books.release("a")
    (load,) = table.scheduler.on_gone("a", now=table.now)
    assert load == Load("a", 0, LONGER)

    told = table.follow(table.scheduler.on_gone("a", now=table.now, error=("cannot_fit", "no room")))

    assert told == [Reject("j2", "cannot_fit", "no room"), Load("a", 0, 0), Dispatch("j1", "a")]
