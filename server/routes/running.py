"""From submitted jobs to an HTTP answer: the first event before the headers, a stream or one object, and hang-ups.

Owns waiting and cancelling; what the bytes look like is `server.output`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, assert_never

import msgspec

from backends.messages import Delta, Failed, Finished, Part, Started
from server.errors import ApiError, from_failed
from server.output.frame import Usage
from server.output.line_limits import LineWatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping

    from starlette.requests import Request

    from backends.messages import Event
    from server.output.line_limits import LineLimits
    from server.pool.stream import Stream, Waiting

T = TypeVar("T")

LOADING_PATIENCE_S = 2.0
"""How long a streaming client waits for its headers while the model loads; comments follow from then on."""
COMMENT_EVERY_S = 3.0
_PUMP_EVENTS = 16
_LIMITS = ("request_timeout", "queue_timeout")
"""Failures of a job that say that its time is over, and nothing of what was asked."""


class AnswerEncoder(Protocol):
    """What makes bytes of a stream's events."""

    def delta(self, event: Delta, choice: int) -> bytes:
        """The events of one delta; empty where there is nothing to say yet."""
        ...

    def end(self, usage: Usage) -> bytes:
        """The end of a stream that went well."""
        ...


class Voice(Protocol):
    """What a surface says in a stream beside its answer."""

    def waiting(self, model: str, waiting: Waiting | None) -> bytes:
        """The job has not begun yet."""
        ...

    def keep_alive(self) -> bytes:
        """Nothing else was said for a while."""
        ...

    def error(self, problem: ApiError) -> bytes:
        """The job failed after the headers."""
        ...


class Collector(Protocol):
    """What gathers a whole answer."""

    def add(self, event: Delta, choice: int) -> None:
        """More of one choice."""
        ...


@dataclass
class Run:
    """The jobs of one request; `choices_per_job` places their choices in the answer."""

    streams: list[Stream]
    choices_per_job: int
    params: Mapping[str, str]
    """The job's field names as this route calls them."""
    limits: LineLimits | None = None
    """What ends a single job's answer early."""
    words: Callable[[ApiError], ApiError] = lambda problem: problem

    def cancel(self) -> None:
        """Ask for the end of every job; harmless for those that ended."""
        for stream in self.streams:
            stream.cancel()

    def events(self, job: int) -> AsyncIterator[Event]:
        """One job's events, as far as the limits let them come."""
        stream = self.streams[job]
        return stream if self.limits is None else limited(stream, self.limits)

    def choice(self, job: int, event: Delta) -> int:
        """The place of a delta's choice in the answer."""
        return job * self.choices_per_job + event.index

    def problem(self, failed: Failed) -> ApiError:
        """The failure in the words of this route."""
        return self.words(from_failed(failed, params=self.params))

    async def started(self) -> Started | None:
        """The first job's first event, not consumed. Raises ApiError where it is a failure."""
        event = await self.streams[0].first()
        if isinstance(event, Failed):
            raise self.problem(event)
        return event if isinstance(event, Started) else None


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


async def while_connected(request: Request, work: Coroutine[None, None, T], *, timeout_s: float | None = None) -> T:
    """The result of `work`, unless the client hangs up first: then `work` is cancelled and ApiError 499 raised.

    With a timeout, raises TimeoutError and leaves nothing running.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ApiError(499, "The client closed the connection.", code="cancelled")
        raise TimeoutError
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def collect(run: Run, collector: Collector) -> Usage:
    """Read every job to its end. Raises ApiError for the first that fails."""
    usage, late = Usage(), Late(run)
    for job in range(len(run.streams)):
        async for event in run.events(job):
            if (delta := _delta(job, event, usage, late)) is not None:
                collector.add(delta, run.choice(job, delta))
    for job, delta in late.endings():
        collector.add(delta, run.choice(job, delta))
    return usage


class Late:
    """Jobs of a request for which a limit of ours left no time, while others of it have generated something."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._answered = False
        self._jobs: list[tuple[int, Failed]] = []

    def seen(self, event: Delta) -> None:
        """Some text of any of its jobs."""
        self._answered = self._answered or event.n_tokens > 0

    def failed(self, job: int, event: Failed) -> None:
        """A job has failed. Raises ApiError where no limit of ours was the reason."""
        if event.code not in _LIMITS:
            raise self._run.problem(event)
        self._jobs.append((job, event))

    def endings(self) -> list[tuple[int, Delta]]:
        """What ends the choices of these jobs. Raises ApiError where the request has generated nothing."""
        if self._jobs and not self._answered:
            raise self._run.problem(self._jobs[0][1])
        choices = range(self._run.choices_per_job)
        return [(job, Delta(event.id, index, "", 0, None, "length")) for job, event in self._jobs for index in choices]


def _delta(job: int, event: Event, usage: Usage, late: Late) -> Delta | None:
    """What an event adds to the answer; its end is counted. Raises ApiError for a failure that is no limit of ours."""
    match event:
        case Delta():
            late.seen(event)
            return event
        case Finished():
            usage.add(event)
        case Failed():
            late.failed(job, event)
        case Started() | Part():
            pass
        case _:
            assert_never(event)
    return None


async def started_in_time(request: Request, run: Run, *, patience_s: float) -> Started | None:
    """The first job's start, or None once a streaming client has waited long enough for its headers.

    Raises ApiError where the job fails or the client hangs up before.
    """
    with contextlib.suppress(TimeoutError):
        return await while_connected(request, run.started(), timeout_s=LOADING_PATIENCE_S)
    if run.streams[0].loading or patience_s <= LOADING_PATIENCE_S:
        return None
    with contextlib.suppress(TimeoutError):
        return await while_connected(request, run.started(), timeout_s=patience_s - LOADING_PATIENCE_S)
    return None


async def sse_bytes(
    run: Run,
    make_encoder: Callable[[Started | None], AnswerEncoder],
    voice: Voice,
    *,
    afterwards: Callable[[], AsyncGenerator[bytes]] | None = None,
) -> AsyncIterator[bytes]:
    """The body of a streamed answer: signs of life until the first event, then events, then the end or an error.

    `afterwards` is what follows the model's last word, before the end.
    """
    try:
        async for sign in until_started(run, voice):
            yield sign
        encoder = make_encoder(await run.started())
        usage, late = Usage(), Late(run)
        async for job, event in _events(run):
            delta = _delta(job, event, usage, late)
            if delta is not None and (chunk := encoder.delta(delta, run.choice(job, delta))):
                yield chunk
        for job, delta in late.endings():
            if chunk := encoder.delta(delta, run.choice(job, delta)):
                yield chunk
        if afterwards is not None:
            async with aclosing(afterwards()) as further:
                async for chunk in further:
                    yield chunk
        yield encoder.end(usage)
    except ApiError as problem:
        yield voice.error(problem)
    finally:
        run.cancel()


async def until_started(run: Run, voice: Voice) -> AsyncIterator[bytes]:
    """A sign of life at once and every few seconds while nothing has happened yet."""
    first = asyncio.ensure_future(run.streams[0].first())
    try:
        while not (await asyncio.wait({first}, timeout=0))[0]:
            yield voice.waiting(run.streams[0].model, run.streams[0].waiting)
            await asyncio.wait({first}, timeout=COMMENT_EVERY_S)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def _events(run: Run) -> AsyncIterator[tuple[int, Event]]:
    """The events of all jobs as they come, each with the number of its job."""
    streams = run.streams
    if len(streams) == 1:
        async for event in run.events(0):
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue(_PUMP_EVENTS)
    pumps = [asyncio.create_task(_pump(job, stream, queue)) for job, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            if (item := await queue.get()) is None:
                running -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(job: int, stream: Stream, queue: asyncio.Queue[tuple[int, Event] | None]) -> None:
    """Move one job's events into the common queue; None when it has ended."""
    async for event in stream:
        await queue.put((job, event))
    await queue.put(None)
