"""The pool over real workers: loading, dispatching, cancelling, dying and draining, with one terminal event each."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from backends.messages import (
    Delta,
    Detokenize,
    Detokenized,
    Event,
    Failed,
    Finished,
    Generate,
    Started,
    TextPrompt,
    Tokenize,
)
from server.pool.pool import PoolError
from tests.pool.conftest import SLOW, Maker, failure, read, running, text

# Serving


async def test_first_request_loads_the_model_and_is_answered(make: Maker) -> None:
    rig = await make()

    stream = rig.submit("a", "hello")
    assert stream.loading
    first = await stream.first()
    events = await read(stream)

    assert isinstance(first, Started)
    assert events[0] == first
    assert text(events) == "echo: hello"
    assert events[-1] == Finished(id=stream.job_id, prompt_tokens=5, completion_tokens=2)
    assert stream.queue_ms is not None
    assert stream.load_ms is not None
    assert stream.load_ms <= stream.queue_ms
    assert stream.gpu_layers is None
    assert not stream.loading


async def test_resident_model_answers_without_a_load(make: Maker) -> None:
    rig = await make()
    await rig.ask("a", "one")
    stream = rig.submit("a", "two")
    assert text(await read(stream)) == "echo: two"
    assert stream.load_ms is None
    assert rig.names().count("loading") == 1


async def test_n_first_requests_cause_one_load(make: Maker) -> None:
    rig = await make(parallel=4)
    streams = [rig.submit("a", f"number {i}") for i in range(20)]
    answers = [text(await read(stream)) for stream in streams]
    assert answers == [f"echo: number {i}" for i in range(20)]
    assert rig.names().count("loading") == 1
    assert rig.sample("model_loads_total", model_name="a", outcome="ok") == 1


async def test_two_models_load_one_after_the_other_and_serve_side_by_side(make: Maker) -> None:
    rig = await make("a", "b")
    a, b = rig.submit("a", "to a"), rig.submit("b", "to b")
    assert text(await read(b)) == "echo: to b"
    assert text(await read(a)) == "echo: to a"
    loads = [(what, figures["model"]) for what, figures in rig.happened if what in ("loading", "loaded")]
    assert loads == [("loading", "a"), ("loaded", "a"), ("loading", "b"), ("loaded", "b")]
    assert rig.pid("a") != rig.pid("b")


async def test_jobs_of_other_kinds_are_answered(make: Maker) -> None:
    rig = await make()
    events = await rig.ask("a", Tokenize("t", TextPrompt("hi"), pieces=True))
    assert events[0].tokens == [104, 105]  # type: ignore[union-attr]
    assert (await rig.ask("a", Detokenize("d", [104, 105])))[0] == Detokenized(id="d", text="hi")


async def test_tokenizing_does_not_wait_for_a_full_engine(make: Maker) -> None:
    rig = await make(parallel=1)
    stream = await running(rig)
    events = await rig.ask("a", Tokenize("t", TextPrompt("hi")))
    assert isinstance(events[-1], Finished)
    stream.cancel()


async def test_many_choices_of_one_job_arrive_whole(make: Maker) -> None:
    rig = await make(parallel=2)
    events = await rig.ask("a", "one two three", n=5)
    for index in range(5):
        assert "".join(e.text for e in events if isinstance(e, Delta) and e.index == index) == "echo: one two three"


async def test_priority_goes_first(make: Maker) -> None:
    rig = await make(parallel=1)
    blocker = await running(rig)
    order: list[str] = []

    async def note(name: str, stream) -> None:
        await read(stream)
        order.append(name)

    tasks = [
        asyncio.create_task(note("normal", rig.submit("a", "normal"))),
        asyncio.create_task(note("urgent", rig.submit("a", "urgent", priority=9))),
    ]
    blocker.cancel()
    await asyncio.gather(*tasks)
    assert order == ["urgent", "normal"]


# Refusing


def without_waiting(work: Coroutine[Any, Any, list[Event]]) -> list[Event]:
    """What it returns without giving anybody else a turn."""
    with pytest.raises(StopIteration) as ended:
        work.send(None)
    events: list[Event] = ended.value.value
    return events


async def test_full_queue_refuses_at_once_with_a_time_to_retry(make: Maker) -> None:
    rig = await make(sections={"server": {"max_queue": 2}}, parallel=1)
    blocker = await running(rig)
    waiting = [rig.submit("a", "waits") for _ in range(2)]

    failed = failure(without_waiting(rig.ask("a", "too late")))

    assert failed.code == "queue_full"
    assert failed.retry_after_s is not None
    assert 1 <= failed.retry_after_s <= 60
    assert rig.sample("admission_rejections_total", model_name="a", reason="queue_full") == 1
    for stream in [blocker, *waiting]:
        stream.cancel()
        await read(stream)


async def test_waiting_too_long_is_a_queue_timeout(make: Maker) -> None:
    rig = await make(sections={"scheduler": {"max_wait_s": 0.2}}, parallel=1)
    blocker = await running(rig)
    assert failure(await rig.ask("a", "waits")).code == "queue_timeout"
    blocker.cancel()


async def test_running_too_long_ends_an_answer_as_far_as_it_has_come_and_frees_the_room(make: Maker) -> None:
    rig = await make(sections={"server": {"request_timeout_s": 1.0}}, parallel=1)
    told: list[tuple[str, dict[str, object]]] = []
    rig.pool.on_change.append(lambda what, figures: told.append((what, figures)))

    events = await rig.ask("a", SLOW)

    last = [event for event in events if isinstance(event, Delta)][-1]
    assert (last.finish_reason, text(events)[:1]) == ("length", "0")
    assert isinstance(events[-1], Finished)
    assert events[-1].completion_tokens == len(text(events).split())
    assert ("cut_short", {"model": "a", "reason": "request_timeout", "tokens": events[-1].completion_tokens}) in told
    assert rig.sample("answers_cut_short_total", model_name="a", reason="request_timeout") == 1
    assert rig.sample("request_success_total", model_name="a", finished_reason="length") == 1
    assert isinstance((await rig.ask("a", "next"))[-1], Finished)


async def test_running_too_long_without_a_word_is_a_request_timeout(make: Maker) -> None:
    rig = await make(sections={"server": {"request_timeout_s": 1.0}}, parallel=1)
    await rig.ask("a", "here")
    assert failure(await rig.ask("a", "!prepare 2000")).code == "request_timeout"


async def test_model_that_never_fits_is_refused_with_the_sums(make: Maker) -> None:
    rig = await make(sections={"memory": {"budget": "1MiB"}})
    failed = failure(await rig.ask("a", "hello"))
    assert failed.code == "cannot_fit"
    assert "1 MiB usable" in failed.message
    assert rig.pool.status().memory.reserved_bytes == 0
    assert rig.sample("admission_rejections_total", model_name="a", reason="cannot_fit") == 1


async def test_broken_file_is_refused_before_any_worker(make: Maker) -> None:
    rig = await make("a", "b")
    (rig.folder / "a.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    failed = failure(await rig.ask("a", "hello"))
    assert failed.code == "load_failed"
    assert "GGUF version" in failed.message
    assert str(rig.folder) not in failed.message
    assert isinstance((await rig.ask("b", "hello"))[-1], Finished)


async def test_load_failure_reaches_everyone_who_waits_and_the_next_request_tries_again(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "fail no such architecture")
    failed = [failure(await read(s)) for s in [rig.submit("a", "x") for _ in range(3)]]
    assert {(f.code, f.message) for f in failed} == {("load_failed", "no such architecture")}
    assert rig.pool.info("a").last_error == "no such architecture"

    rig.direct("a", "")
    assert text(await rig.ask("a", "again")) == "echo: again"
    assert rig.pool.info("a").last_error is None


# Cancelling


async def test_cancel_while_running_frees_the_room_for_the_next(make: Maker) -> None:
    rig = await make(parallel=1)
    stream = await running(rig)
    waiting = rig.submit("a", "next")

    stream.cancel()
    stream.cancel()

    assert failure(await read(stream)).code == "cancelled"
    assert text(await read(waiting)) == "echo: next"
    assert rig.sample("request_success_total", model_name="a", finished_reason="abort") == 1


async def test_cancel_while_queued_ends_at_once(make: Maker) -> None:
    rig = await make(parallel=1)
    blocker = await running(rig)
    waiting = rig.submit("a", "waits")
    waiting.cancel()
    assert failure(await read(waiting)).code == "cancelled"
    assert rig.pool.status().queue == []
    blocker.cancel()


async def test_waiter_that_leaves_cancels_a_load_no_other_wants(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "slow 0.5")
    stream = rig.submit("a", "hello")
    assert stream.loading
    stream.cancel()
    assert failure(await read(stream)).code == "cancelled"
    assert text(await rig.ask("a", "later")) == "echo: later"
    assert rig.names()[1:] == ["loading", "load_cancelled", "unloaded", "loading", "loaded"]
    assert rig.sample("model_loads_total", model_name="a", outcome="cancelled") == 1


async def test_waiter_that_leaves_does_not_cancel_the_load_of_another(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "slow 0.3")
    first, second = rig.submit("a", "hello"), rig.submit("a", "stays")
    first.cancel()
    assert text(await read(second)) == "echo: stays"
    assert rig.names().count("loading") == 1


async def test_load_no_request_waits_for_is_not_started(make: Maker) -> None:
    rig = await make("a", "b")
    rig.direct("a", "slow 0.5")
    a, b = rig.submit("a", "hello"), rig.submit("b", "hello")
    b.cancel()
    await read(a)
    assert failure(await read(b)).code == "cancelled"
    assert [f["model"] for what, f in rig.happened if what == "loading"] == ["a"]


async def test_cancel_after_the_end_is_harmless(make: Maker) -> None:
    rig = await make()
    stream = rig.submit("a", "short")
    await read(stream)
    stream.cancel()


# Dying


async def test_crash_mid_stream_is_an_error_event_and_the_next_request_is_served(make: Maker) -> None:
    rig = await make("a", "b")
    bystander = await running(rig, "b")
    await rig.ask("a", "warm")
    before = rig.pid("a")

    events = await rig.ask("a", "!crash")
    began = time.monotonic()
    after = await rig.ask("a", "hello")

    assert text(events) in ("one", "one two")  # the last frame of quick text may be lost with its worker
    assert failure(events).code == "worker_crashed"
    assert "SIGABRT" in failure(events).message
    assert text(after) == "echo: hello"
    assert time.monotonic() - began < 15
    assert rig.pid("a") != before
    assert rig.sample("worker_crashes_total", model_name="a") == 1
    bystander.cancel()
    assert failure(await read(bystander)).code == "cancelled"


async def test_crash_before_the_first_token_is_retried_once_and_then_told(make: Maker) -> None:
    rig = await make(parallel=2)
    await rig.ask("a", "warm")

    events = await rig.ask("a", "!crash-early")

    assert failure(events).code == "worker_crashed"
    assert rig.names().count("crashed") == 2


async def test_innocent_job_survives_a_crash_that_came_before_its_first_token(make: Maker) -> None:
    rig = await make(parallel=1)
    await rig.ask("a", "warm")
    # given a job that is still in preparation when its worker is killed
    stream = rig.submit("a", "!prepare 300")
    os.kill(rig.pid("a"), signal.SIGKILL)

    events = await read(stream)

    assert text(events) == "echo: !prepare 300"
    assert sum(isinstance(event, Started) for event in events) == 1
    assert rig.names().count("crashed") == 1


async def test_hung_worker_is_replaced_and_its_jobs_are_told(make: Maker) -> None:
    rig = await make()
    stream = await running(rig)
    os.kill(rig.pid("a"), signal.SIGSTOP)

    assert failure(await read(stream)).code == "worker_hung"
    assert text(await rig.ask("a", "hello")) == "echo: hello"


async def test_repeated_kills_with_good_answers_between_do_not_quarantine(make: Maker) -> None:
    rig = await make()
    for i in range(6):
        assert text(await rig.ask("a", f"round {i}")) == f"echo: round {i}"
        stream = await running(rig)
        os.kill(rig.pid("a"), signal.SIGKILL)
        assert failure(await read(stream)).code == "worker_crashed"


async def test_crash_loop_is_quarantined_and_others_serve(make: Maker) -> None:
    rig = await make("a", "b")
    rig.direct("a", "crash")
    codes = [failure(await rig.ask("a", "hello")).code for _ in range(4)]
    assert codes == ["load_failed", "load_failed", "load_failed", "quarantined"]

    failed = failure(await rig.ask("a", "hello"))
    assert failed.retry_after_s is not None
    assert "llama.cpp found that" in failed.message
    assert text(await rig.ask("b", "hello")) == "echo: hello"
    assert rig.pool.ready
    with pytest.raises(PoolError) as refused:
        await rig.pool.load("a")
    assert refused.value.code == "quarantined"


async def test_a_repaired_file_ends_the_quarantine(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "crash")
    codes = [failure(await rig.ask("a", "hello")).code for _ in range(4)]
    rig.direct("a", "")
    assert (codes[-1], failure(await rig.ask("a", "hello")).code) == ("quarantined", "quarantined"), "the same file"

    path = rig.folder / "a.gguf"
    repaired = path.with_suffix(".new")
    repaired.write_bytes(path.read_bytes())
    repaired.replace(path)

    assert text(await rig.ask("a", "hello")) == "echo: hello"
    assert "quarantine_lifted" in rig.names()


async def test_bytes_are_booked_before_the_worker_and_released_after_it(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "slow 0.5")
    stream = rig.submit("a", SLOW)
    await asyncio.wait_for(stream.first(), 20)
    booked = rig.pool.status().memory.reserved_bytes
    assert booked > 0
    os.kill(rig.pid("a"), signal.SIGKILL)
    await read(stream)
    (model,) = rig.pool.status().models
    assert model.state == "unloaded" or rig.pool.status().memory.reserved_bytes == booked


# Odd ones


async def test_two_jobs_of_one_id_do_not_mix(make: Maker) -> None:
    rig = await make()
    first = rig.submit("a", Generate("same", TextPrompt("one")))
    second = rig.submit("a", Generate("same", TextPrompt("two")))
    assert failure(await read(second)).code == "internal_error"
    assert text(await read(first)) == "echo: one"


async def test_storm_of_everything_ends_every_job_once(make: Maker) -> None:
    rig = await make("a", "b", parallel=3, sections={"server": {"max_queue": 1000}})
    prompts = ["hello", "!slow 2 20", "!long 50", "!crash", "!refuse no", "!prepare 5", "!long 200"]
    streams = [rig.submit("ab"[i % 2], prompts[i % len(prompts)]) for i in range(120)]
    for i, stream in enumerate(streams):
        if i % 5 == 0:
            stream.cancel()
    ends = [(await read(stream))[-1] for stream in streams]
    assert len(ends) == 120
    assert {type(end) for end in ends} <= {Finished, Failed}
    assert rig.pool.status().queue == []
    assert sum(m.busy for m in rig.pool.status().models) == 0
