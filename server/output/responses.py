"""A response as clients read it: numbered events, or one object. Signs of life are events too: Codex skips comments.

Pure: deltas in, bytes out. What the output items are is `items`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.output.frame import chat_logprobs, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backends.messages import Delta
    from server.errors import ApiError
    from server.output.frame import Head, Usage
    from server.output.items import Change, Items
    from server.output.sorting import Sorter
    from server.pool.stream import Waiting

_FINAL = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}


class ResponseAnswer:
    """One response, streamed or collected; it is also the voice of its stream."""

    def __init__(
        self,
        opening: Mapping[str, Any],
        items: Items,
        *,
        now: Callable[[], float],
        on_done: Callable[[dict[str, Any]], None],
    ) -> None:
        self._opening = dict(opening)
        self._items = items
        self._sorter: Sorter | None = None
        self._now = now
        self._on_done = on_done
        self._sequence = 0
        self._opened = self._ended = False

    def begin(self, sorter: Sorter) -> ResponseAnswer:
        """The job has started, so it is known how its text is sorted."""
        self._sorter = sorter
        return self

    def delta(self, event: Delta, _choice: int) -> bytes:
        """The events of one delta; empty where all of its text is held back."""
        return self._open() + self._events(self._changes(event))

    def add(self, event: Delta, _choice: int) -> None:
        """More of a response that is not streamed."""
        for _ in self._changes(event):
            pass

    def closed(self) -> bytes:
        """What closes the last item: the model has said all, and tools of the server's own are yet to run."""
        return self._open() + self._events(self._items.finish(self._last_status))

    def more(self, change: Change) -> bytes:
        """The event of something that happens after the model's last word."""
        return self._event(*change)

    def end(self, usage: Usage) -> bytes:
        """What closes the last item, and the whole response."""
        opening = self._open()
        changes = self._events(self._items.finish(self._last_status))
        response = self._done(usage)
        self._ended = True
        return opening + changes + self._event(_FINAL[response["status"]], {"response": response})

    def body(self, _head: Head, usage: Usage) -> bytes:
        """The whole response."""
        for _ in self._items.finish(self._last_status):
            pass
        return to_json(self._done(usage))

    def waiting(self, _model: str, _waiting: Waiting | None) -> bytes:
        """The job has not begun: the response is announced, and then again in progress every few seconds."""
        return self.keep_alive() if self._opened else self._open()

    def keep_alive(self) -> bytes:
        """An event that every client knows and that changes nothing."""
        if self._ended:
            return b""
        return self._open() or self._event("response.in_progress", {"response": self._opening})

    def error(self, problem: ApiError) -> bytes:
        """The end of a stream whose job failed."""
        opening = self._open()
        self._ended = True
        failure = {"code": _error_code(problem), "message": problem.message}
        failed = {**self._opening, "status": "failed", "error": failure, "output": self._items.items}
        return opening + self._event("response.failed", {"response": failed})

    @property
    def _finish(self) -> str | None:
        return None if self._sorter is None else self._sorter.finish_reason

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    @property
    def _last_status(self) -> str:
        """How its last item has ended: a stop string may cut a call, too."""
        return "incomplete" if self._sorter is not None and self._sorter.is_cut else self._status

    def _changes(self, event: Delta) -> Iterable[Change]:
        assert self._sorter is not None
        for piece, tokens in self._sorter.said(event):
            yield from self._items.feed(piece, chat_logprobs(tokens or [])["content"])

    def _done(self, usage: Usage) -> dict[str, Any]:
        response = {**self._opening, "status": self._status, "output": self._items.items}
        if response["status"] == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(self._now())
        response["usage"] = usage_object(usage)
        self._on_done(response)
        return response

    def _open(self) -> bytes:
        """The first two events, once."""
        if self._opened:
            return b""
        self._opened = True
        response = {"response": self._opening}
        return self._event("response.created", response) + self._event("response.in_progress", response)

    def _events(self, changes: Iterable[Change]) -> bytes:
        return b"".join([self._event(kind, fields) for kind, fields in changes])

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        data = to_json({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode("ascii"), data)


def usage_object(usage: Usage) -> dict[str, Any]:
    """The tokens of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error_code(problem: ApiError) -> str:
    """One of the few codes that a failed response may have, or the one that Codex reads to shorten its history."""
    if problem.code == "context_length_exceeded":
        return problem.code
    if problem.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if problem.status < 500 else "server_error"
