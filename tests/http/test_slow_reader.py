"""A reader that stops reading is cut off, and its job is cancelled on every way out of the response."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from backends.messages import Delta, Event, Finished, Started
from server.output.chat import ChatStream
from server.output.frame import Comments, Head
from server.pool.stream import Stream
from server.routes.running import Run, sse_bytes
from server.routes.sse import StreamedAnswer

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


def answer_of(*events: Event, send_timeout_s: float = 5.0) -> tuple[StreamedAnswer, list[str]]:
    """A streamed answer over a stream that holds these events, and the ids of what was cancelled."""
    cancelled: list[str] = []
    stream = Stream("m", "j", cancel=cancelled.append, loading=lambda: False)
    for event in events:
        stream.push(event)
    run = Run([stream], 1, {})
    encoder = ChatStream(Head("i", 0, "m", "f"), include_usage=False, new_splitter=lambda: None)
    voice = Comments()
    body = sse_bytes(run, lambda _: encoder, voice)
    return StreamedAnswer(
        body, run, headers={}, keepalive_s=60, keep_alive=voice.keep_alive, send_timeout_s=send_timeout_s
    ), cancelled


async def never() -> dict:
    await asyncio.Event().wait()
    raise AssertionError


def text(number: int) -> Delta:
    return Delta(id="j", index=number, text="x", n_tokens=1)


async def test_a_send_that_hangs_ends_the_answer_and_the_job():
    answer, cancelled = answer_of(Started(id="j", prompt_tokens=1), text(0), send_timeout_s=0.05)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(answer(SCOPE, never, send), 5)
    assert cancelled == ["j"]


async def test_a_client_that_is_gone_before_the_body_ends_the_job():
    answer, cancelled = answer_of()

    async def gone() -> dict:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    await asyncio.wait_for(answer(SCOPE, gone, send), 5)
    assert cancelled == ["j"]


async def test_an_answer_that_is_cancelled_before_it_begins_ends_the_job():
    answer, cancelled = answer_of(text(0))

    async def send(message: Message) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(answer(SCOPE, never, send))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == ["j"]


async def test_a_stream_that_ends_well_cancels_nothing():
    answer, cancelled = answer_of(Started(id="j", prompt_tokens=1), text(0), Finished(id="j"))
    sent = b""

    async def send(message: Message) -> None:
        nonlocal sent
        sent += message.get("body", b"")

    await asyncio.wait_for(answer(SCOPE, never, send), 5)
    assert sent.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in sent
    assert cancelled == []
