"""What happens to the models, told to every listener: bounded buffers between the pool and slow readers.

Owns the subscriptions. What happens is the pool's to say; how it goes over HTTP is the route's. For the event loop's
thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SUBSCRIBERS: Final = 32
MAX_UNREAD: Final = 256
"""Happenings a reader may be behind; then it is cut off."""
KEPT: Final = 128
"""Happenings that are told again to who asks for the last ones."""
LAST: Final = "stopped"
"""After this nothing happens any more."""


class Happening(msgspec.Struct, frozen=True):
    """One state change or decision."""

    time: float
    """Unix seconds."""
    what: str
    model: str | None = None
    reason: str | None = None
    figures: dict[str, Any] = {}


class TooManyReadersError(Exception):
    """There are as many readers as there may be."""


class Subscription:
    """`async for` over what happens from now on, by one reader."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._unread: deque[Happening] = deque()
        self._limit = limit
        self._clock = clock
        self._ended = False
        self._filled = asyncio.Event()

    def push(self, happening: Happening) -> None:
        """Take one more; a reader too far behind loses what it has not read, and the subscription ends."""
        if self._ended:
            return
        if len(self._unread) >= self._limit:
            self._unread.clear()
            happening = Happening(self._clock(), "cut", reason=f"the reader was more than {self._limit} events behind")
        self._unread.append(happening)
        self._ended = happening.what in ("cut", LAST)
        self._filled.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Happening:
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        return self._unread.popleft()


class Events:
    """The subscriptions of one server."""

    def __init__(self, *, limit: int = MAX_UNREAD, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._readers: set[Subscription] = set()
        self._kept: deque[Happening] = deque(maxlen=KEPT)

    def subscribe(self, *, last: int = 0) -> Subscription:
        """Listen from now on, after so many that have happened already. Raises TooManyReadersError."""
        if len(self._readers) >= MAX_SUBSCRIBERS:
            raise TooManyReadersError
        reader = Subscription(self._limit, self._clock)
        self._readers.add(reader)
        over = bool(self._kept) and self._kept[-1].what == LAST
        for happening in [*self._kept][len(self._kept) - min(max(last, int(over)), len(self._kept)) :]:
            reader.push(happening)
        return reader

    def leave(self, reader: Subscription) -> None:
        """Listen no more; idempotent."""
        self._readers.discard(reader)

    @property
    def n_readers(self) -> int:
        """How many listen."""
        return len(self._readers)

    def on_change(self, what: str, figures: dict[str, object]) -> None:
        """What the pool tells."""
        rest = dict(figures)
        model, reason = rest.pop("model", None), rest.pop("reason", None)
        happening = Happening(
            self._clock(), what, None if model is None else str(model), None if reason is None else str(reason), rest
        )
        self._kept.append(happening)
        for reader in self._readers:
            reader.push(happening)
