"""The scheduler as a pure state machine: what it decides in each situation."""

from __future__ import annotations

import pytest

from backends.messages import ErrorCode
from server.scheduling.decisions import Abort, CancelLoad, Dispatch, Load, ModelState, Reject, Unload
from server.scheduling.quarantine import QuarantineRules
from server.scheduling.scheduler import LIGHT_JOBS, ModelRules, Rules, Scheduler, SwapRules

FOREVER = -1.0


def make(*models: ModelRules, max_wait_s: float = 60.0, **rules: object) -> Scheduler:
    swaps = SwapRules(max_wait_s=max_wait_s)
    return Scheduler(models or [ModelRules("a", parallel=2)], Rules(swaps=swaps, **rules))  # type: ignore[arg-type]


def submit(scheduler: Scheduler, job_id: str, model: str = "a", *, n: int = 1, priority: int = 0, now: float = 0.0):
    return scheduler.submit(job_id, model, sequences=n, priority=priority, now=now)


def ready(scheduler: Scheduler, model: str = "a", *, parallel: int = 2, now: float = 0.0):
    scheduler.load(model, now)
    return scheduler.on_ready(model, parallel=parallel, now=now)


def codes(actions) -> list[str]:
    return [action.code for action in actions if isinstance(action, Reject)]


# Loading


def test_first_requests_of_a_model_cause_one_load() -> None:
    scheduler = make(ModelRules("a", parallel=4))

    actions = [action for i in range(4) for action in submit(scheduler, f"j{i}")]

    assert actions == [Load("a")]
    dispatched = scheduler.on_ready("a", parallel=4, now=1.0)
    assert dispatched == [Dispatch(f"j{i}", "a") for i in range(4)]


def test_one_load_at_a_time_in_the_whole_system() -> None:
    scheduler = make(ModelRules("a"), ModelRules("b"), ModelRules("c"))

    assert submit(scheduler, "1", "a") == [Load("a")]
    assert submit(scheduler, "2", "b") == []
    assert submit(scheduler, "3", "c") == []

    assert scheduler.on_ready("a", parallel=1, now=1.0) == [Dispatch("1", "a"), Load("b")]
    assert scheduler.on_ready("b", parallel=1, now=2.0) == [Dispatch("2", "b"), Load("c")]


def test_models_take_turns_at_loading() -> None:
    scheduler = make(ModelRules("a"), ModelRules("b"))
    submit(scheduler, "a1", "a")
    submit(scheduler, "b1", "b")

    # when the first load fails, and its client asks again at once
    failed = scheduler.on_gone("a", now=1.0, error=("load_failed", "no"))
    assert failed == [Reject("a1", "load_failed", "no"), Load("b")]
    submit(scheduler, "a2", "a")

    assert scheduler.on_ready("b", parallel=1, now=2.0) == [Dispatch("b1", "b"), Load("a")]


def test_load_no_request_waits_for_any_more_is_not_started() -> None:
    scheduler = make(ModelRules("a"), ModelRules("b"))
    submit(scheduler, "1", "a")
    submit(scheduler, "2", "b")

    assert scheduler.cancel("2", 0.5) == [Reject("2", "cancelled", "the request was cancelled")]

    assert scheduler.on_ready("a", parallel=1, now=1.0) == [Dispatch("1", "a")]
    assert scheduler.view("b", 1.0).state is ModelState.UNLOADED


def test_load_failure_fails_those_who_wait_for_it() -> None:
    scheduler = make()
    submit(scheduler, "1")
    submit(scheduler, "2")

    actions = scheduler.on_gone("a", now=1.0, error=("cannot_fit", "too large"), strike=False)

    assert actions == [Reject("1", "cannot_fit", "too large"), Reject("2", "cannot_fit", "too large")]
    assert scheduler.view("a", 1.0).last_error == "too large"


def test_operator_loads_a_model_without_a_job() -> None:
    scheduler = make()

    assert scheduler.load("a", 0.0) == [Load("a")]
    assert scheduler.load("a", 0.0) == []
    assert scheduler.on_ready("a", parallel=2, now=1.0) == []
    assert scheduler.load("a", 1.0) == []


# Dispatching


def test_dispatches_only_what_has_room() -> None:
    scheduler = make()
    ready(scheduler)

    assert submit(scheduler, "1") == [Dispatch("1", "a")]
    assert submit(scheduler, "2") == [Dispatch("2", "a")]
    assert submit(scheduler, "3") == []

    assert scheduler.on_terminal("1", 1.0, finished=True) == [Dispatch("3", "a")]


def test_job_of_many_choices_takes_as_many_sequences_as_there_are() -> None:
    scheduler = make()
    ready(scheduler)

    assert submit(scheduler, "wide", n=8) == [Dispatch("wide", "a")]
    assert submit(scheduler, "next") == []
    assert scheduler.on_terminal("wide", 1.0, finished=True) == [Dispatch("next", "a")]


def test_wide_job_is_not_overtaken_by_narrow_ones() -> None:
    scheduler = make()
    ready(scheduler)
    submit(scheduler, "1")
    submit(scheduler, "wide", n=2)

    assert submit(scheduler, "narrow") == []
    assert scheduler.on_terminal("1", 1.0, finished=True) == [Dispatch("wide", "a")]


def test_jobs_without_sequences_pass_a_full_worker() -> None:
    scheduler = make()
    ready(scheduler)
    submit(scheduler, "wide", n=2)
    submit(scheduler, "waiting")

    light = [submit(scheduler, f"light{i}", n=0) for i in range(LIGHT_JOBS + 1)]

    assert light[:-1] == [[Dispatch(f"light{i}", "a")] for i in range(LIGHT_JOBS)]
    assert light[-1] == []
    assert scheduler.on_terminal("light0", 1.0, finished=True) == [Dispatch(f"light{LIGHT_JOBS}", "a")]


def test_higher_priority_goes_first_and_equals_in_order() -> None:
    scheduler = make(ModelRules("a", parallel=1))
    ready(scheduler, parallel=1)
    submit(scheduler, "running")
    submit(scheduler, "first")
    submit(scheduler, "second")
    submit(scheduler, "urgent", priority=5)

    order = []
    for job_id in ("running", "urgent", "first"):
        order += scheduler.on_terminal(job_id, 1.0, finished=True)

    assert order == [Dispatch("urgent", "a"), Dispatch("first", "a"), Dispatch("second", "a")]


# Refusing


def test_full_queue_refuses_with_the_measured_pace() -> None:
    scheduler = make(ModelRules("a", parallel=1), max_queue=2)
    ready(scheduler, parallel=1)
    now = 0.0
    for i in range(40):  # each job takes ten seconds
        submit(scheduler, f"warm{i}", now=now)
        now += 10.0
        scheduler.on_terminal(f"warm{i}", now, finished=True)
    for i in range(3):
        submit(scheduler, f"j{i}", now=now)

    (refusal,) = submit(scheduler, "late", now=now)

    assert isinstance(refusal, Reject)
    assert refusal.code == "queue_full"
    assert refusal.retry_after_s == 30.0


def test_retry_after_stays_between_one_second_and_a_minute() -> None:
    scheduler = make(ModelRules("a", parallel=1), max_queue=1)
    ready(scheduler, parallel=1)
    for i, duration_s in enumerate((0.001, 10_000.0)):
        for repeat in range(50):
            submit(scheduler, f"{i}-{repeat}", now=0.0)
            scheduler.on_terminal(f"{i}-{repeat}", duration_s, finished=True)
        submit(scheduler, f"run{i}")
        submit(scheduler, f"wait{i}")
        (refusal,) = submit(scheduler, f"late{i}")
        assert isinstance(refusal, Reject)
        assert refusal.retry_after_s == (1.0, 60.0)[i]
        scheduler.cancel(f"wait{i}", 0.0)
        scheduler.on_terminal(f"run{i}", 0.0, finished=True)


def test_free_worker_takes_a_job_however_full_the_queue_is() -> None:
    scheduler = make(ModelRules("a"), ModelRules("b"), max_queue=1)
    ready(scheduler, "b")
    submit(scheduler, "1", "a")

    assert submit(scheduler, "2", "b") == [Dispatch("2", "b")]
    assert codes(submit(scheduler, "3", "a")) == ["queue_full"]


def test_waiting_longer_than_allowed_is_a_queue_timeout() -> None:
    scheduler = make(max_wait_s=60.0)
    ready(scheduler)
    submit(scheduler, "wide", n=2)
    submit(scheduler, "waiting", now=10.0)

    assert scheduler.next_deadline() == 70.0
    assert scheduler.on_tick(69.9) == []
    (refusal,) = scheduler.on_tick(70.0)

    assert isinstance(refusal, Reject)
    assert (refusal.job_id, refusal.code) == ("waiting", "queue_timeout")
    assert refusal.retry_after_s is not None


def test_load_of_ones_own_model_does_not_count_as_waiting() -> None:
    scheduler = make(max_wait_s=60.0, request_timeout_s=600.0)
    submit(scheduler, "1")

    assert scheduler.on_tick(100.0) == []
    assert scheduler.on_ready("a", parallel=2, now=120.0) == [Dispatch("1", "a")]


def test_request_timeout_aborts_a_running_job_once_and_its_terminal_event_frees_the_room() -> None:
    scheduler = make(ModelRules("a", parallel=1), request_timeout_s=100.0)
    ready(scheduler, parallel=1)
    submit(scheduler, "1")
    submit(scheduler, "2", now=99.0)

    (abort,) = scheduler.on_tick(100.0)
    assert isinstance(abort, Abort)
    assert (abort.job_id, abort.code) == ("1", "request_timeout")
    assert scheduler.on_tick(101.0) == []
    assert scheduler.on_terminal("1", 102.0, finished=False) == [Dispatch("2", "a")]


# Cancelling


def test_cancel_of_a_queued_job_ends_it_at_once() -> None:
    scheduler = make(ModelRules("a", parallel=1))
    ready(scheduler, parallel=1)
    submit(scheduler, "1")
    submit(scheduler, "2")

    assert codes(scheduler.cancel("2", 1.0)) == ["cancelled"]
    assert scheduler.n_waiting == 0


def test_cancel_of_a_wide_job_lets_the_narrow_one_behind_it_go() -> None:
    scheduler = make()
    ready(scheduler)
    submit(scheduler, "1")
    submit(scheduler, "wide", n=2)
    submit(scheduler, "narrow")

    assert scheduler.cancel("wide", 1.0)[1:] == [Dispatch("narrow", "a")]


def test_cancel_of_a_running_job_asks_the_worker_and_keeps_the_room() -> None:
    scheduler = make(ModelRules("a", parallel=1))
    ready(scheduler, parallel=1)
    submit(scheduler, "1")
    submit(scheduler, "2")

    assert scheduler.cancel("1", 1.0) == [Abort("1", "cancelled", "the request was cancelled")]
    assert scheduler.cancel("1", 1.0) == []
    assert scheduler.view("a", 1.0).running == 1
    assert scheduler.on_terminal("1", 2.0, finished=False) == [Dispatch("2", "a")]


def test_cancel_of_an_unknown_job_does_nothing() -> None:
    assert make().cancel("never seen", 0.0) == []


# Dying workers


def test_crash_before_the_first_token_is_retried_once() -> None:
    scheduler = make()
    ready(scheduler)
    submit(scheduler, "1")
    crash: tuple[ErrorCode, str] = ("worker_crashed", "SIGSEGV")

    assert scheduler.on_gone("a", now=1.0, error=crash, retry=frozenset({"1"})) == [Load("a")]
    assert scheduler.on_ready("a", parallel=2, now=2.0) == [Dispatch("1", "a")]

    assert scheduler.on_gone("a", now=3.0, error=crash, retry=frozenset({"1"})) == [Reject("1", *crash)]


def test_retried_jobs_stand_before_those_that_came_later() -> None:
    scheduler = make(ModelRules("a", parallel=1))
    ready(scheduler, parallel=1)
    submit(scheduler, "1")
    submit(scheduler, "2")

    scheduler.on_gone("a", now=1.0, error=("worker_crashed", "x"), retry=frozenset({"1"}))

    assert scheduler.on_ready("a", parallel=1, now=2.0) == [Dispatch("1", "a")]


def test_cancelled_job_is_not_retried() -> None:
    scheduler = make()
    ready(scheduler)
    submit(scheduler, "1")
    scheduler.cancel("1", 0.5)

    actions = scheduler.on_gone("a", now=1.0, error=("worker_crashed", "x"), retry=frozenset({"1"}))

    assert codes(actions) == ["cancelled"]


def test_hung_worker_fails_its_jobs_without_a_retry() -> None:
    scheduler = make()
    ready(scheduler)
    submit(scheduler, "1")

    actions = scheduler.on_gone("a", now=1.0, error=("worker_hung", "silent"), retry=frozenset({"1"}))

    assert codes(actions) == ["worker_hung"]


def test_crash_of_one_model_leaves_the_other_alone() -> None:
    scheduler = make(ModelRules("a"), ModelRules("b"))
    ready(scheduler, "a", parallel=1)
    ready(scheduler, "b", parallel=1)
    submit(scheduler, "1", "a")
    submit(scheduler, "2", "b")

    assert scheduler.on_gone("a", now=1.0, error=("worker_crashed", "x")) == []
    assert scheduler.view("b", 1.0).running == 1
    assert scheduler.view("a", 1.0).state is ModelState.UNLOADED


def crash(scheduler: Scheduler, now: float) -> list:
    scheduler.load("a", now)
    scheduler.on_ready("a", parallel=2, now=now)
    return scheduler.on_gone("a", now=now, error=("worker_crashed", "SIGSEGV"))


def test_three_crashes_in_a_minute_quarantine_the_model() -> None:
    scheduler = make(quarantine=QuarantineRules(first_pause_s=15.0))
    for now in (0.0, 20.0, 40.0):
        crash(scheduler, now)

    (refusal,) = submit(scheduler, "1", now=42.0)

    assert isinstance(refusal, Reject)
    assert refusal.code == "quarantined"
    assert refusal.retry_after_s == 13.0
    assert "SIGSEGV" in refusal.message


def test_three_crashes_in_more_than_a_minute_do_not() -> None:
    scheduler = make()
    for now in (0.0, 35.0, 70.0):
        crash(scheduler, now)

    assert submit(scheduler, "1", now=71.0) == [Load("a")]


def test_finished_job_between_crashes_forgives_them() -> None:
    scheduler = make()
    for now in (0.0, 5.0, 10.0, 15.0, 20.0):
        ready(scheduler, now=now)
        submit(scheduler, f"good{now}", now=now)
        scheduler.on_terminal(f"good{now}", now, finished=True)
        scheduler.on_gone("a", now=now, error=("worker_crashed", "SIGKILL"))

    assert submit(scheduler, "next", now=21.0) == [Load("a")]


def test_pause_ends_with_one_attempt_and_doubles_when_that_fails() -> None:
    scheduler = make(quarantine=QuarantineRules(first_pause_s=10.0, longest_pause_s=35.0))
    pauses = []
    now = 0.0
    for _ in range(3):
        crash(scheduler, now)
    for _ in range(4):
        until = scheduler.view("a", now).quarantined_until
        assert until is not None
        pauses.append(until - now)
        now = until
        assert submit(scheduler, f"try{now}", now=now) == [Load("a")]
        scheduler.on_gone("a", now=now, error=("load_failed", "still broken"))

    assert pauses == [10.0, 20.0, 35.0, 35.0]


def test_quarantine_rejects_those_who_wait() -> None:
    scheduler = make()
    for now in (0.0, 1.0):
        crash(scheduler, now)
    ready(scheduler, now=2.0)
    submit(scheduler, "wide", n=2, now=2.0)
    submit(scheduler, "waiting", now=2.0)

    actions = scheduler.on_gone("a", now=3.0, error=("worker_crashed", "x"))

    assert codes(actions) == ["quarantined"]


def test_too_large_a_model_is_no_failing_model() -> None:
    scheduler = make()
    for i in range(5):
        submit(scheduler, str(i))
        scheduler.on_gone("a", now=0.0, error=("cannot_fit", "too large"), strike=False)

    assert scheduler.view("a", 0.0).quarantined_until is None


# Leaving


def test_idle_model_leaves_after_its_time() -> None:
    scheduler = make(ModelRules("a", keep_alive_s=600.0))
    ready(scheduler)
    submit(scheduler, "1")
    scheduler.on_terminal("1", 100.0, finished=True)

    assert scheduler.next_deadline() == 700.0
    assert scheduler.on_tick(699.0) == []
    assert scheduler.on_tick(700.0) == [Unload("a", "ttl")]
    assert scheduler.on_gone("a", now=701.0) == []
    assert scheduler.view("a", 701.0).state is ModelState.UNLOADED


@pytest.mark.parametrize("rules", [ModelRules("a", keep_alive_s=FOREVER), ModelRules("a", keep_alive_s=1, pinned=True)])
def test_pinned_and_eternal_models_stay(rules: ModelRules) -> None:
    scheduler = make(rules)
    ready(scheduler)

    assert scheduler.on_tick(1e9) == []
    assert scheduler.next_deadline() is None


def test_unload_waits_for_what_runs_and_keeps_what_waits_for_the_next_load() -> None:
    scheduler = make(ModelRules("a", parallel=1))
    ready(scheduler, parallel=1)
    submit(scheduler, "1")
    submit(scheduler, "2")

    assert scheduler.unload("a", 1.0) == []
    assert scheduler.view("a", 1.0).state is ModelState.DRAINING
    assert scheduler.on_terminal("1", 2.0, finished=True) == [Unload("a", "manual")]
    assert scheduler.on_gone("a", now=3.0) == [Load("a")]


def test_unload_during_a_load_that_jobs_wait_for_lets_it_and_them_finish_first() -> None:
    scheduler = make()
    submit(scheduler, "1")

    assert scheduler.unload("a", 1.0) == []
    assert scheduler.on_ready("a", parallel=2, now=2.0) == [Dispatch("1", "a")]
    assert scheduler.on_terminal("1", 3.0, finished=True) == [Unload("a", "manual")]


def test_unload_cancels_a_load_that_no_job_waits_for() -> None:
    scheduler = make()
    scheduler.load("a", 0.0)

    assert scheduler.unload("a", 1.0) == [CancelLoad("a")]
    assert scheduler.on_gone("a", now=1.1) == []
    assert scheduler.view("a", 1.1).state is ModelState.UNLOADED


def test_drain_refuses_the_new_and_lets_the_accepted_finish() -> None:
    scheduler = make(ModelRules("a", parallel=1), ModelRules("b"))
    ready(scheduler, parallel=1)
    submit(scheduler, "running")
    submit(scheduler, "waiting")
    scheduler.load("b", 0.0)
    scheduler.on_gone("b", now=0.0, error=("load_failed", "x"))

    assert scheduler.drain(1.0) == []
    assert codes(submit(scheduler, "late")) == ["draining"]
    assert scheduler.on_terminal("running", 2.0, finished=True) == [Dispatch("waiting", "a")]


def test_drain_ends_those_whose_model_is_not_there() -> None:
    scheduler = make(ModelRules("a"), ModelRules("b"))
    submit(scheduler, "1", "a")
    submit(scheduler, "2", "b")

    assert [(r.job_id, r.code) for r in scheduler.drain(1.0) if isinstance(r, Reject)] == [("2", "draining")]
    assert scheduler.on_ready("a", parallel=1, now=2.0) == [Dispatch("1", "a")]
