"""Many models under one budget: who is loaded next, who leaves for it, and when. Each rule by its name."""

from __future__ import annotations

import pytest

from backends.messages import ErrorCode
from server.scheduling.decisions import Action, CancelLoad, Dispatch, Drain, Load, ModelState, Reject, Unload
from server.scheduling.scheduler import ModelRules, Rules, Scheduler, SwapRules
from tests.present import present
from tests.scheduler.fake_budget import FakeBudget


class World:
    """A scheduler with books, whose loads take as long as the test says."""

    def __init__(
        self,
        budget: int,
        sizes: dict[str, int],
        *,
        pinned: tuple[str, ...] = (),
        shrunk: dict[tuple[str, int], int] | None = None,
        priorities: dict[str, int] | None = None,
        parallel: int = 1,
        **swaps: object,
    ) -> None:
        self.books = FakeBudget(budget, sizes, frozenset(pinned), shrunk or {})
        models = [
            ModelRules(m, parallel=parallel, pinned=m in pinned, priority=(priorities or {}).get(m, 0)) for m in sizes
        ]
        self.scheduler = Scheduler(models, Rules(swaps=SwapRules(**swaps)), self.books)  # type: ignore[arg-type]
        self.n = 0
        self.parallel = parallel

    def ask(self, model: str, now: float, **how: int) -> list[Action]:
        self.n += 1
        return self.booked(self.scheduler.submit(f"{model}{self.n}", model, sequences=1, now=now, **how))  # type: ignore[arg-type]

    def booked(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, Load):
                self.books.reserve(action.model, smaller_by=action.smaller_by)
        return actions

    def ready(self, model: str, now: float) -> list[Action]:
        return self.booked(self.scheduler.on_ready(model, parallel=self.parallel, now=now))

    def gone(self, model: str, now: float, error: tuple[str, str] | None = None) -> list[Action]:
        self.books.release(model)
        return self.booked(self.scheduler.on_gone(model, now=now, error=error))  # type: ignore[arg-type]

    def done(self, job_id: str, now: float) -> list[Action]:
        return self.booked(self.scheduler.on_terminal(job_id, now, finished=True))

    def tick(self, now: float) -> list[Action]:
        return self.booked(self.scheduler.on_tick(now))

    def resident(self, model: str, *, load_s: float = 1.0, now: float = 0.0, uses: int = 0) -> None:
        """Load a model in so many seconds before `now`, and let it serve so many requests."""
        self.booked(self.scheduler.load(model, now - load_s))
        self.ready(model, now)
        for _ in range(uses):
            self.ask(model, now)
            self.done(f"{model}{self.n}", now)

    def state(self, model: str) -> ModelState:
        return self.scheduler.view(model, 0.0).state


def test_what_fits_stays_together() -> None:
    world = World(10, {"a": 4, "b": 6})
    world.resident("a")
    assert world.ask("b", 1.0) == [Load("b")]


def test_idle_model_leaves_for_a_waiting_one_and_is_told_for_which() -> None:
    world = World(10, {"a": 6, "b": 6})
    world.resident("a")

    assert world.ask("b", 100.0) == [Unload("a", "room", "b")]
    assert world.gone("a", 100.1) == [Load("b")]
    assert world.ready("b", 101.0) == [Dispatch("b1", "b")]


def test_just_enough_leaves_and_the_least_missed() -> None:
    world = World(10, {"hot": 5, "cold": 5, "new": 4})
    world.resident("hot", uses=5)
    world.resident("cold", uses=1)
    assert world.ask("new", 100.0) == [Unload("cold", "room", "new")]


def test_model_that_is_slow_to_load_stays_before_one_that_is_quick() -> None:
    world = World(10, {"slow": 5, "quick": 5, "new": 5})
    world.resident("slow", load_s=9.0, uses=2)
    world.resident("quick", load_s=0.5, uses=2)
    assert world.ask("new", 100.0) == [Unload("quick", "room", "new")]


def test_model_of_higher_priority_stays() -> None:
    world = World(10, {"dear": 5, "other": 5, "new": 5}, priorities={"dear": 5})
    world.resident("dear", uses=1)
    world.resident("other", uses=3)
    assert world.ask("new", 100.0) == [Unload("other", "room", "new")]


def test_pinned_model_never_leaves() -> None:
    world = World(10, {"pin": 5, "big": 6, "small": 5}, pinned=("pin",))
    world.resident("pin")

    (refusal,) = world.ask("big", 100.0)
    assert isinstance(refusal, Reject)
    assert refusal.code == "memory_busy"
    assert refusal.retry_after_s is not None
    assert world.ask("small", 100.0) == [Load("small")]


def test_model_that_can_never_fit_is_refused_before_anything_leaves() -> None:
    world = World(10, {"a": 6, "huge": 11})
    world.resident("a")

    (refusal,) = world.ask("huge", 100.0)

    assert isinstance(refusal, Reject)
    assert (refusal.code, refusal.retry_after_s) == ("cannot_fit", None)
    assert world.state("a") is ModelState.READY


def test_busy_model_drains_when_nothing_idle_suffices_and_its_jobs_are_not_killed() -> None:
    world = World(10, {"a": 6, "b": 6})
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0)  # a1 runs

    assert world.ask("b", 20.0) == []
    look = world.scheduler.next_deadline()
    assert look is not None
    assert 20.0 < look < 25.0
    assert world.tick(look) == [Drain("a", "room", "b")]
    assert world.ask("a", look) == []  # a3 waits: nothing new goes to the victim
    assert world.done("a1", look + 1) == [Unload("a", "room", "b")]
    assert world.gone("a", look + 1.1) == [Load("b")]


def test_idle_model_leaves_rather_than_a_busy_one() -> None:
    world = World(12, {"busy": 6, "idle": 6, "new": 6})
    world.resident("busy", uses=0)
    world.resident("idle", uses=9)
    world.ask("busy", 10.0)
    assert world.ask("new", 100.0) == [Unload("idle", "room", "new")]


def test_model_in_use_stays_for_its_turn() -> None:
    world = World(10, {"a": 6, "b": 6})
    world.resident("a", load_s=1.0, now=10.0)
    world.ask("a", 10.0)

    assert world.ask("b", 10.1) == []
    look = world.scheduler.next_deadline()
    assert look == pytest.approx(14.0)  # a round of two models takes six loads: two to load, two turns of four less one


def test_turn_is_never_longer_than_the_configured_residency() -> None:
    world = World(10, {"a": 6, "b": 6}, min_residency_s=15.0)
    world.resident("a", load_s=60.0, now=100.0)
    world.ask("a", 100.0)
    world.ask("b", 100.1)
    assert world.scheduler.next_deadline() == pytest.approx(115.0)


def test_turn_ends_early_when_nothing_runs_anywhere() -> None:
    world = World(10, {"a": 6, "b": 6})
    world.resident("a", load_s=1.0, now=10.0)
    world.ask("a", 10.0)
    world.ask("b", 10.1)

    world.done("a1", 10.2)

    look = present(world.scheduler.next_deadline())
    assert look == pytest.approx(10.3)  # a tenth of its load, for the next request of the same client
    assert world.tick(look + 0.001) == [Unload("a", "room", "b")]


def test_requests_of_a_resident_model_run_at_once_while_others_wait() -> None:
    world = World(10, {"a": 6, "b": 6}, parallel=4)
    world.resident("a", load_s=10.0, now=10.0)
    world.ask("a", 10.0)
    world.ask("b", 10.1)
    assert world.ask("a", 10.2) == [Dispatch("a3", "a")]


def test_waiters_of_one_model_share_a_load_and_the_larger_crowd_goes_first() -> None:
    world = World(10, {"a": 6, "b": 6, "c": 6}, parallel=4)
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0)
    for model in ("b", "c", "c", "c"):
        world.ask(model, 10.1)

    assert world.done("a1", 10.2) == [Unload("a", "room", "c")]
    assert world.gone("a", 11.1) == [Load("c")]
    assert world.ready("c", 12.0) == [Dispatch(f"c{i}", "c") for i in (3, 4, 5)]


def test_one_who_waits_long_goes_before_a_crowd() -> None:
    world = World(10, {"a": 6, "b": 6, "c": 6}, parallel=8)
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0)
    world.ask("b", 10.1)
    for _ in range(6):
        world.ask("c", 14.0)
    assert world.done("a1", 14.2)[0] == Unload("a", "room", "b")


def test_interactive_request_goes_before_background_ones() -> None:
    world = World(10, {"a": 6, "b": 6, "c": 6})
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0)
    for _ in range(5):
        world.ask("b", 10.1)
    # a turn does not protect from a higher priority
    assert world.ask("c", 10.2, priority=5) == [Drain("a", "room", "c")]


def test_background_request_does_not_drain_interactive_work_until_it_presses() -> None:
    world = World(10, {"a": 6, "b": 6}, max_wait_s=60.0)
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0, priority=5)
    world.ask("b", 10.0)
    assert world.tick(39.9) == []
    assert world.tick(40.1) == [Drain("a", "room", "b")]


def test_room_that_was_made_is_for_the_model_it_was_made_for() -> None:
    world = World(10, {"a": 6, "big": 10, "small": 5})
    world.resident("a")
    assert world.ask("big", 100.0) == [Unload("a", "room", "big")]
    assert world.ask("small", 100.05) == []
    assert world.gone("a", 100.1) == [Load("big")]


def test_small_model_loads_beside_one_that_waits_for_a_drain() -> None:
    world = World(10, {"a": 6, "big": 9, "small": 1})
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0)
    world.ask("big", 10.0)
    world.tick(60.0)
    assert world.state("a") is ModelState.DRAINING
    assert world.ask("small", 60.1) == [Load("small")]


def test_drain_is_called_off_when_none_wants_the_room_any_more() -> None:
    world = World(10, {"a": 6, "b": 6})
    world.resident("a", load_s=1.0)
    world.ask("a", 10.0)
    world.ask("b", 10.0)
    world.tick(30.0)
    world.ask("a", 30.0)
    assert world.state("a") is ModelState.DRAINING

    world.scheduler.cancel("b2", 31.0)

    assert world.state("a") is ModelState.READY
    assert world.done("a1", 32.0) == [Dispatch("a3", "a")]


def test_waiter_that_leaves_cancels_its_load_and_one_of_two_does_not() -> None:
    world = World(10, {"a": 6})
    world.ask("a", 0.0)
    world.ask("a", 0.0)
    assert [type(a) for a in world.scheduler.cancel("a1", 0.1)] == [Reject]
    assert world.scheduler.cancel("a2", 0.2)[1:] == [CancelLoad("a")]


def test_own_drain_and_load_do_not_count_as_waiting() -> None:
    world = World(10, {"a": 6, "b": 6}, max_wait_s=10.0)
    world.resident("a", load_s=1.0)
    world.ask("a", 0.0)
    world.ask("b", 0.0)
    assert world.tick(5.0) == [Drain("a", "room", "b")]
    assert world.tick(100.0) == []
    world.done("a1", 101.0)
    world.gone("a", 101.1)
    assert world.tick(150.0) == []
    assert world.ready("b", 151.0) == [Dispatch("b2", "b")]


def test_idle_models_leave_when_the_budget_shrinks_and_a_grown_one_is_used() -> None:
    world = World(12, {"a": 6, "b": 6})
    world.resident("a", uses=3)
    world.resident("b", uses=1)
    world.books.budget = 10
    assert world.tick(50.0) == [Unload("b", "pressure")]
    world.gone("b", 50.1)
    world.books.budget = 12
    assert world.ask("b", 60.0) == [Load("b")]


def test_busy_model_leaves_after_its_work_when_the_budget_shrank() -> None:
    world = World(12, {"a": 6, "b": 6})
    world.resident("a")
    world.resident("b")
    world.ask("a", 10.0)
    world.ask("b", 10.0)
    world.books.budget = 6
    assert world.tick(11.0) == []
    assert world.done("a1", 12.0) == [Unload("a", "pressure")]


def test_keeping_under_pressure_is_kept() -> None:
    world = World(12, {"a": 6}, relieve=False)
    world.resident("a")
    world.books.budget = 1
    assert world.tick(11.0) == []


def test_keep_alive_of_the_last_request_holds() -> None:
    world = World(10, {"a": 5})
    world.resident("a")
    world.scheduler.submit("x", "a", sequences=1, keep_alive_s=0.0, now=1.0)
    world.done("x", 2.0)
    assert world.tick(2.0) == [Unload("a", "ttl")]
    world.gone("a", 3.0)
    world.scheduler.load("a", 4.0)
    world.ready("a", 5.0)
    assert world.tick(6.0) == [], "a load by hand is not the last request's"


@pytest.mark.parametrize(("asked", "left"), [(None, 598.0), (30.0, 28.0), (7200.0, 7198.0), (-1.0, None)])
def test_what_is_told_of_a_models_leaving_is_what_it_leaves_by(asked: float | None, left: float | None) -> None:
    world = World(10, {"a": 5})
    world.resident("a")
    world.scheduler.submit("x", "a", sequences=1, keep_alive_s=asked, now=1.0)
    assert world.scheduler.view("a", 1.5).unload_at is None, "it is busy"
    world.done("x", 2.0)
    view = world.scheduler.view("a", 4.0)
    assert view.unload_at == (None if left is None else 4.0 + left)
    assert view.keep_s == (600.0 if asked is None else asked)


OOM: tuple[ErrorCode, str] = ("out_of_memory", "no memory")


def test_load_without_memory_takes_the_next_plan_then_evicts_then_gives_up() -> None:
    world = World(20, {"idle": 5, "a": 10}, shrunk={("a", 1): 8, ("a", 2): 8})
    world.resident("idle")
    assert world.ask("a", 100.0) == [Load("a")]
    assert world.gone("a", 101.0, OOM) == [Load("a", 1)]
    assert world.gone("a", 102.0, OOM) == [Unload("idle", "room", "a")]
    assert world.gone("idle", 103.0) == [Load("a", 2)]

    (refusal,) = world.gone("a", 104.0, OOM)

    assert isinstance(refusal, Reject)
    assert refusal.code == "out_of_memory"
    assert refusal.retry_after_s is not None
    assert world.scheduler.view("a", 104.0).quarantined_until is None


def test_load_without_memory_and_none_to_evict_gives_up_after_the_next_plan() -> None:
    world = World(20, {"a": 10})
    world.ask("a", 0.0)
    assert world.gone("a", 1.0, OOM) == [Load("a", 1)]
    assert [a.code for a in world.gone("a", 2.0, OOM) if isinstance(a, Reject)] == ["out_of_memory"]


def test_job_that_ran_out_of_memory_before_its_first_token_is_run_once_more() -> None:
    world = World(20, {"a": 10})
    world.resident("a")
    world.ask("a", 1.0)
    assert world.scheduler.on_terminal("a1", 2.0, finished=False, again=OOM) == [Dispatch("a1", "a")]
    (refusal,) = world.scheduler.on_terminal("a1", 3.0, finished=False, again=OOM)
    assert isinstance(refusal, Reject)
    assert refusal.code == "out_of_memory"


def test_outlook_counts_those_before_and_the_measured_load() -> None:
    world = World(10, {"a": 6})
    world.resident("a", load_s=8.0, now=8.0)
    world.scheduler.unload("a", 20.0)
    world.gone("a", 20.0)
    world.ask("a", 30.0)
    world.ask("a", 30.0)

    outlook = world.scheduler.outlook("a2", 32.0)

    assert outlook is not None
    assert outlook.position == 1
    assert outlook.wait_s == pytest.approx(6.0 + 1.0)  # the rest of the load, and one job before it


def test_file_not_looked_at_is_loaded_and_estimated_on_the_way() -> None:
    world = World(10, {"a": 6, "b": 0})
    world.resident("a")
    assert world.ask("b", 100.0) == [Load("b")]
    world.books.sizes = {"a": 6, "b": 8}  # now it is known
    assert world.gone("b", 100.1, ("memory_busy", "8 needed, 4 free")) == [Unload("a", "room", "b")]
