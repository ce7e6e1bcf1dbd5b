"""The reader's end of one job: its events in order, exactly one terminal one last.

Owns the buffer between the pool and a slow reader. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from backends.messages import ENDS, Delta, Event, Failed, Finished, Part, Started

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages import Figure, FinishReason, Ready, TokenLogprob


@dataclass
class _Pending:
    """Unread deltas of one choice that lie side by side, as one."""

    first: Delta
    texts: list[str]
    n_tokens: int
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
    stop: str | None

    def add(self, more: Delta) -> None:
        self.texts.append(more.text)
        self.n_tokens += more.n_tokens
        if more.logprobs is not None:
            if self.logprobs is None or self.logprobs is self.first.logprobs:  # the event's own list stays as it is
                self.logprobs = [*(self.logprobs or [])]
            self.logprobs += more.logprobs
        self.finish_reason = more.finish_reason
        self.stop = more.stop

    def merged(self) -> Delta:
        if len(self.texts) == 1:
            return self.first
        return Delta(
            id=self.first.id,
            index=self.first.index,
            text="".join(self.texts),
            n_tokens=self.n_tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            stop=self.stop,
        )


@dataclass(frozen=True)
class Waiting:
    """What a job that has not begun can be told."""

    position: int
    """In the queue of its model; 1 is the next."""
    estimate_s: float
    """Until it begins, by what has been measured so far."""
    loaded: float | None
    """The share of its model's load that is done; None while that is not loading."""


class Stream:
    """`async for` over the events of one job, by one reader."""

    def __init__(
        self,
        model: str,
        job_id: str,
        *,
        cancel: Callable[[str], None],
        loading: Callable[[], bool],
        outlook: Callable[[], Waiting | None] = lambda: None,
    ) -> None:
        self._outlook = outlook
        self.model = model
        self.job_id = job_id
        self.queue_ms: float | None = None
        """From submission to a worker; known with the first event."""
        self.load_ms: float | None = None
        """The part of it that was the model's load; None when it was resident."""
        self.ready: Ready | None = None
        """The run-time figures of the model that runs it; None until it has one."""
        self.gpu_layers: tuple[int, int] | None = None
        """Layers on the card and layers in all; None where there is no card."""
        self.kept_from_card: dict[str, Figure] = {}
        """Layers on the card of which the CPU computes a part, by the configuration's names."""
        self._cancel = cancel
        self._loading = loading
        self._buffer: deque[Event | _Pending] = deque()
        self._unread: dict[int, _Pending] = {}
        """The newest unread delta of each choice; choices are independent, so later text may join it there."""
        self._waiter: asyncio.Future[None] | None = None
        self._cancelled = False
        self._complete = False
        self._drained = False

    @property
    def loading(self) -> bool:
        """Whether the job waits for its model to load."""
        return not self._complete and self._loading()

    @property
    def waiting(self) -> Waiting | None:
        """How long it may take; None once the job has begun, or where it is not known."""
        return None if self._complete else self._outlook()

    def cancel(self) -> None:
        """Ask for the job's end; idempotent, and nothing after the terminal event."""
        if not self._cancelled and not self._complete:
            self._cancelled = True
            self._cancel(self.job_id)

    async def first(self) -> Event:
        """Wait for the next event without taking it; not for after the last."""
        await self._filled()
        head = self._buffer[0]
        if isinstance(head, _Pending):
            return head.merged()
        return head

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if self._drained:
            raise StopAsyncIteration
        await self._filled()
        head = self._buffer.popleft()
        if isinstance(head, _Pending):
            if self._unread.get(head.first.index) is head:
                del self._unread[head.first.index]
            return head.merged()
        self._drained = isinstance(head, ENDS)
        return head

    def push(self, event: Event) -> None:
        """Take an event from the pool; nothing follows a terminal one."""
        if self._complete:
            return
        match event:
            case Part() if self._cancelled:  # the reader is gone
                return
            case Delta():
                pending = self._unread.get(event.index)
                if pending is not None:
                    pending.add(event)
                    return
                pending = _Pending(event, [event.text], event.n_tokens, event.logprobs, event.finish_reason, event.stop)
                self._unread[event.index] = pending
                self._buffer.append(pending)
            case Started() | Part():
                self._buffer.append(event)
            case Finished() | Failed():
                self._complete = True
                self._buffer.append(event)
            case _:
                assert_never(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _filled(self) -> None:
        while not self._buffer:
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
