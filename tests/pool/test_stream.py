"""A stream's buffer: order, merging for a slow reader, peeking, and its end."""

from __future__ import annotations

import asyncio

import pytest

from backends.messages import Delta, Event, Failed, Finished, Started, TokenLogprob
from server.pool.stream import Stream

STARTED = Started(id="j", prompt_tokens=1)
FINISHED = Finished(id="j", prompt_tokens=1, completion_tokens=2)


def make(cancelled: list[str] | None = None) -> Stream:
    sink = cancelled if cancelled is not None else []
    return Stream("m", "j", cancel=sink.append, loading=lambda: False)


def delta(text: str, index: int = 0, **fields) -> Delta:
    return Delta(id="j", index=index, text=text, n_tokens=1, **fields)


def filled(*events: Event) -> Stream:
    stream = make()
    for event in events:
        stream.push(event)
    return stream


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


async def test_events_come_in_order_and_end_with_the_terminal_one() -> None:
    stream = filled(STARTED, delta("a"), FINISHED)
    assert await read(stream) == [STARTED, delta("a"), FINISHED]
    assert await read(stream) == []


async def test_unread_deltas_of_a_choice_merge() -> None:
    lp = TokenLogprob("x", -1.0, b"x")
    stream = filled(
        delta("a", logprobs=[lp]), delta("b", logprobs=[lp]), delta("c", finish_reason="stop", stop="!"), FINISHED
    )
    merged, end = await read(stream)
    assert merged == Delta("j", 0, "abc", 3, [lp, lp], "stop", "!")
    assert end == FINISHED


async def test_choices_merge_each_for_itself() -> None:
    stream = filled(delta("a0"), delta("b0", 1), delta("a1"), delta("b1", 1), FINISHED)
    texts = [(event.index, event.text) for event in await read(stream) if isinstance(event, Delta)]
    assert texts == [(0, "a0a1"), (1, "b0b1")]


async def test_reader_that_keeps_up_sees_every_delta() -> None:
    stream = make()
    seen: list[Event] = []

    async def reader() -> None:
        async for event in stream:
            seen.append(event)

    task = asyncio.create_task(reader())
    for event in (STARTED, delta("a"), delta("b"), FINISHED):
        stream.push(event)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await task
    assert seen == [STARTED, delta("a"), delta("b"), FINISHED]


async def test_buffer_of_a_reader_that_never_comes_stays_small() -> None:
    stream = filled(STARTED, *(delta("x") for _ in range(10_000)))
    assert len(stream._buffer) == 2


async def test_peeking_takes_nothing() -> None:
    stream = filled(STARTED, FINISHED)
    assert await stream.first() == STARTED
    assert await stream.first() == STARTED
    assert await read(stream) == [STARTED, FINISHED]


async def test_peeking_that_is_given_up_loses_nothing() -> None:
    stream = make()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.first(), 0.01)
    stream.push(STARTED)
    assert await stream.first() == STARTED


async def test_nothing_follows_the_terminal_event() -> None:
    failed = Failed(id="j", code="cancelled", message="x")
    stream = filled(STARTED, failed, delta("late"), FINISHED)
    assert await read(stream) == [STARTED, failed]


async def test_cancel_asks_once_and_not_after_the_end() -> None:
    asked: list[str] = []
    stream = make(asked)
    stream.cancel()
    stream.cancel()
    assert asked == ["j"]

    ended = make(asked)
    ended.push(FINISHED)
    ended.cancel()
    assert asked == ["j"]


async def test_text_after_cancel_is_not_kept() -> None:
    stream = make()
    stream.cancel()
    stream.push(delta("x"))
    stream.push(FINISHED)
    assert await read(stream) == [FINISHED]
