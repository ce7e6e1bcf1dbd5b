"""A model is loaded with a longer context for a job that needs it, and shrinks back: what is decided, in pure time."""

from __future__ import annotations

from server.scheduling.decisions import Action, Dispatch, Drain, Grow, Load, ModelState, Reject, Stay, Unload
from server.scheduling.scheduler import ModelRules, Rules, Scheduler
from tests.scheduler.fake_budget import FakeBudget

BEGINS, LONG, LONGER = 8192, 12_000, 30_000
SIZES = {"a": 40, "b": 50}
GROWN: dict[tuple[str, int], int] = {("a", LONG): 60, ("a", LONGER): 90, ("b", LONG): 70, ("b", LONGER): 200}


class Table:
    """A scheduler over a budget, and what the pool would do for it at once."""

    def __init__(self, budget: int, *, pinned: str = "", keep_alive_s: float = 600.0) -> None:
        self.books = FakeBudget(budget, SIZES, frozenset({pinned} - {""}))
        self.books.grown |= GROWN
        models = [ModelRules(m, parallel=2, keep_alive_s=keep_alive_s, pinned=m == pinned) for m in SIZES]
        self.scheduler = Scheduler(models, Rules(shrink_after_s=100.0), self.books)
        self.now = 0.0

    def ask(self, job_id: str, model: str = "a", context: int = 0) -> list[Action]:
        return self.follow(self.scheduler.submit(job_id, model, sequences=1, context=context, now=self.now))

    def too_long(self, job_id: str, least: int, wanted: int | None = None) -> list[Action]:
        told = self.scheduler.on_too_long(job_id, self.now, least=least, wanted=wanted or least)
        return self.follow(told)

    def end(self, job_id: str) -> list[Action]:
        return self.follow(self.scheduler.on_terminal(job_id, self.now, finished=True))

    def tick(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.follow(self.scheduler.on_tick(self.now))

    def follow(self, actions: list[Action]) -> list[Action]:
        """Loads and unloads are done as soon as they are asked for."""
        done = list(actions)
        for action in actions:
            match action:
                case Load(model, smaller_by, context):
                    self.books.reserve(model, smaller_by=smaller_by, context=context)
                    ready = self.scheduler.on_ready(model, parallel=2, now=self.now, context=context or BEGINS)
                    done += self.follow(ready)
                case Unload(model):
                    self.books.release(model)
                    done += self.follow(self.scheduler.on_gone(model, now=self.now))
        return done


def of(actions: list[Action], *kinds: type) -> list[Action]:
    return [action for action in actions if isinstance(action, kinds)]


def test_a_job_that_is_too_long_waits_for_a_load_with_its_context() -> None:
    table = Table(100)
    table.ask("j1")

    told = table.too_long("j1", LONG)

    assert told == [
        Grow("j1", "a", LONG, running=0), Unload("a", "growth"), Load("a", 0, LONG), Dispatch("j1", "a"),
    ]  # fmt: skip


def test_running_jobs_end_first_and_new_ones_wait() -> None:
    table = Table(100)
    table.ask("j1")
    table.ask("j2")

    assert table.too_long("j2", LONG) == [Grow("j2", "a", LONG, running=1)]
    assert table.scheduler.state("a") is ModelState.DRAINING
    assert not of(table.ask("j3"), Dispatch)
    assert table.end("j1")[-2:] == [Dispatch("j2", "a"), Dispatch("j3", "a")]


def test_a_growth_that_its_client_does_not_wait_for_is_given_up() -> None:
    table = Table(100)
    table.ask("j1")
    table.ask("j2")
    table.too_long("j2", LONG)

    told = table.follow(table.scheduler.cancel("j2", table.now))

    assert [type(action) for action in told] == [Reject]
    assert table.scheduler.state("a") is ModelState.READY
    assert table.tick(100.0) == [], "no stream is preempted for it"
    assert of(table.ask("j3"), Dispatch) == [Dispatch("j3", "a")]


def test_the_longest_that_waits_is_loaded_for() -> None:
    table = Table(100)
    table.ask("j1")
    table.ask("j2")
    table.too_long("j1", LONG)

    told = table.too_long("j2", LONGER)

    assert of(told, Load) == [Load("a", 0, LONGER)]


def test_room_for_an_answer_is_worth_a_reload_but_no_waiting_of_others() -> None:
    table = Table(100)
    table.ask("j1")
    assert of(table.too_long("j1", BEGINS, LONG), Load) == [Load("a", 0, LONG)]

    busy = Table(100)
    busy.ask("j1")
    busy.ask("j2")
    (stay,) = busy.too_long("j2", BEGINS, LONG)
    assert isinstance(stay, Stay)
    assert stay.reason == "room for an answer, and 1 other requests would wait"


def test_room_for_an_answer_evicts_no_neighbour_and_a_long_prompt_does() -> None:
    table = Table(100)
    table.ask("k1", "b")
    table.end("k1")
    table.ask("j1")

    (stay,) = table.too_long("j1", BEGINS, LONG)
    assert isinstance(stay, Stay)
    assert stay.reason == "room for an answer, and another model would be evicted"
    assert table.scheduler.state("b") is ModelState.READY

    table.end("j1")
    table.ask("j2")
    told = table.too_long("j2", LONG)
    assert Unload("b", "room", "a") in told
    assert told[-1] == Dispatch("j2", "a")


def test_the_evicted_neighbour_comes_back_and_the_grown_model_begins_small_again() -> None:
    table = Table(100)
    table.ask("k1", "b")
    table.end("k1")
    table.ask("j1")
    table.too_long("j1", LONG)
    table.end("j1")
    assert table.scheduler.state("b") is ModelState.UNLOADED

    table.ask("k2", "b")
    table.end("k2")
    told = table.ask("j2")

    assert of(told, Load) == [Load("a", 0, 0)]
    assert {m: table.scheduler.state(m) for m in SIZES} == dict.fromkeys(SIZES, ModelState.READY)


def test_growth_that_a_pinned_neighbour_leaves_no_room_for_is_denied_with_the_sentence() -> None:
    table = Table(100, pinned="b")
    table.ask("k1", "b")
    table.ask("j1")

    (stay,) = table.too_long("j1", LONG)

    assert isinstance(stay, Stay)
    assert "pinned models hold the rest" in stay.reason
    assert table.scheduler.state("a") is ModelState.READY


def test_growth_while_the_server_drains_is_denied() -> None:
    table = Table(100)
    table.ask("j1")
    table.scheduler.drain(table.now)

    assert table.too_long("j1", LONG) == [Stay("j1", "a", LONG, "the server is shutting down")]


def test_a_job_is_loaded_for_twice_at_most() -> None:
    table = Table(100)
    table.ask("j1")
    table.too_long("j1", LONG)
    table.too_long("j1", LONGER)

    (stay,) = table.too_long("j1", LONGER + 1)

    assert isinstance(stay, Stay)


def test_an_unloaded_model_is_loaded_at_once_with_what_a_job_seems_to_need() -> None:
    assert of(Table(100).ask("j1", context=LONG), Load) == [Load("a", 0, LONG)]
    assert of(Table(50).ask("j1", context=LONG), Load) == [Load("a", 0, 0)]  # it may turn out to need less


def test_a_grown_model_that_idles_shrinks_and_its_keep_alive_goes_on() -> None:
    table = Table(100, keep_alive_s=150.0)
    table.ask("j1")
    table.too_long("j1", LONG)
    table.end("j1")

    assert table.scheduler.next_deadline() == 100.0
    assert table.tick(99.0) == []
    assert table.tick(1.0) == [Unload("a", "shrink"), Load("a", 0, 0)]
    assert table.scheduler.view("a", table.now).unload_at == 150.0
    assert table.tick(50.0) == [Unload("a", "ttl")]


def test_a_model_that_shrinks_evicts_none_and_stays_away_where_there_is_no_room() -> None:
    table = Table(100)
    table.ask("j1")
    table.too_long("j1", LONG)
    table.end("j1")
    table.now += 100.0
    (unload,) = table.scheduler.on_tick(table.now)
    assert unload == Unload("a", "shrink")
    table.books.release("a")
    table.books.holders["b"] = table.books.need("b", smaller_by=0)  # type: ignore[assignment]
    table.books.budget = 60

    assert table.scheduler.on_gone("a", now=table.now) == []
    assert not table.scheduler.wanted("a")


def test_a_load_that_has_no_memory_for_the_context_ends_only_who_needs_it() -> None:
    table = Table(100)
    table.ask("j1")
    table.ask("j2")
    table.scheduler.on_too_long("j1", table.now, least=LONG, wanted=LONG)
    table.ask("j3")
    told = table.scheduler.on_terminal("j2", table.now, finished=True)
    assert told == [Unload("a", "growth")]
    table.books.release("a")
    (load,) = table.scheduler.on_gone("a", now=table.now)
    assert load == Load("a", 0, LONG)

    told = table.follow(table.scheduler.on_gone("a", now=table.now, error=("cannot_fit", "no room")))

    assert Reject("j1", "cannot_fit", "no room") in told
    assert Load("a", 0, 0) in told
    assert Dispatch("j3", "a") in told


def test_no_drain_is_told_where_nothing_runs() -> None:
    table = Table(100)
    table.ask("j1")

    assert not of(table.too_long("j1", LONG), Drain)
