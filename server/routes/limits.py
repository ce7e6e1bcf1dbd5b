"""A job's events until a limit that only the server keeps: then the job is cancelled, and the answer ends by length."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

import msgspec

from backends.messages import Delta, Failed, Finished, Part, Started
from server.output.line_limits import LineWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.messages import Event
    from server.output.line_limits import LineLimits
    from server.pool.stream import Stream


async def limited(stream: Stream, limits: LineLimits) -> AsyncIterator[Event]:
    """The events of a job with one choice, cut where `limits` say so."""
    watch, clock = LineWatch(limits), asyncio.get_running_loop().time
    usage = Finished(id=stream.job_id)
    try:
        while True:
            async with asyncio.timeout_at(watch.deadline):
                event = await anext(stream)
            match event:
                case Started():
                    watch.begin(clock())
                    usage = Finished(id=event.id, prompt_tokens=event.prompt_tokens, cached_tokens=event.cached_tokens)
                case Delta():
                    usage = msgspec.structs.replace(usage, completion_tokens=usage.completion_tokens + event.n_tokens)
                    text, ends = watch.text(event.text, clock())
                    if (ends and event.finish_reason is None) or len(text) < len(event.text):
                        yield msgspec.structs.replace(event, text=text, finish_reason="length", stop=None)
                        break
                case Part() | Finished() | Failed():
                    pass
                case _:
                    assert_never(event)
            yield event
    except StopAsyncIteration:
        return
    except TimeoutError:
        yield Delta(id=usage.id, index=0, text="", n_tokens=0, finish_reason="length")
    stream.cancel()
    yield usage
