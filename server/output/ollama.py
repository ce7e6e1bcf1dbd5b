"""An answer as Ollama's clients read it: lines of JSON, or one object. Signs of life are lines that say nothing yet.

Pure: deltas and the time in, bytes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from backends.formats.pieces import CallArguments, CallBegins, Content
from server.errors import encodable
from server.output.frame import chat_logprobs, to_json
from server.output.sorting import Said, arguments_of, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.messages import Delta, TokenLogprob
    from server.errors import ApiError
    from server.output.frame import Head, Usage
    from server.output.sorting import Sorter
    from server.pool.stream import Stream, Waiting

NDJSON = "application/x-ndjson"
Shape = Literal["chat", "generate"]
_NS = 1_000_000_000


def line(value: dict[str, Any]) -> bytes:
    """One line of a stream."""
    return to_json(value) + b"\n"


def now_text() -> str:
    """This moment, as Go's clients read it."""
    return time_text(datetime.now(UTC))


def time_text(moment: datetime) -> str:
    """A moment of UTC, as Go's clients read it."""
    return moment.isoformat().removesuffix("+00:00") + "Z"


@dataclass
class OllamaClock:
    """When a request came, began to be computed, and said its first token; seconds of `clock`."""

    clock: Callable[[], float]
    arrived: float
    first: float | None = None
    stream: Stream | None = None

    def submitted(self, stream: Stream) -> None:
        """Its job, which knows how long it has waited."""
        self.stream = stream

    def saw(self) -> None:
        """It has said something."""
        self.first = self.first if self.first is not None else self.clock()

    def figures(self, usage: Usage) -> dict[str, int]:
        """Ollama's counts, and durations in nanoseconds."""
        end = self.clock()
        first = end if self.first is None else self.first
        queue_ms, load_ms = (self.stream.queue_ms, self.stream.load_ms) if self.stream else (None, None)
        return {
            "total_duration": _ns(end - self.arrived),
            "load_duration": _ns((load_ms or 0) / 1000),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _ns(first - self.arrived - (queue_ms or 0) / 1000),
            "eval_count": usage.completion_tokens,
            "eval_duration": _ns(end - first),
        }


def _ns(seconds: float) -> int:
    return max(0, round(seconds * _NS))


@dataclass
class _Message:
    """What the model said, as far as it has come; a call is there once it is whole."""

    content: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None

    def add(self, other: _Message) -> None:
        self.content += other.content
        self.thinking += other.thinking
        self.calls += other.calls
        if other.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *other.logprobs]

    def as_dict(self, shape: Shape) -> dict[str, Any]:
        """The fields that hold it."""
        thinking = {"thinking": self.thinking} if self.thinking else {}
        found = {} if self.logprobs is None else {"logprobs": chat_logprobs(self.logprobs)["content"]}
        if shape == "generate":
            return {"response": self.content, **thinking, **found}
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {"message": {"role": "assistant", "content": self.content, **thinking, **calls}, **found}


class OllamaAnswer:
    """One answer, streamed or collected."""

    def __init__(self, model: str, shape: Shape, sorter: Sorter, clock: OllamaClock) -> None:
        self._model, self._shape, self._sorter, self._clock = model, shape, sorter, clock
        self._open: CallBegins | None = None
        self._arguments: list[str] = []
        self._n_calls = 0
        self._whole = _Message()

    def add(self, event: Delta, _choice: int) -> None:
        """More of an answer that is not streamed."""
        for message in self._said(event):
            self._whole.add(message)

    def delta(self, event: Delta, _choice: int) -> bytes:
        """The lines of one delta; empty where all of it is held back."""
        return b"".join(
            line({**self._head(), **said.as_dict(self._shape), "done": False}) for said in self._said(event)
        )

    def end(self, usage: Usage) -> bytes:
        """The line that closes a stream."""
        return line(self._ended(_Message(), usage))

    def body(self, _head: Head, usage: Usage) -> bytes:
        """The whole answer."""
        return to_json(self._ended(self._whole, usage))

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": now_text()}

    def _ended(self, message: _Message, usage: Usage) -> dict[str, Any]:
        reason = "length" if self._sorter.finish_reason == "length" else "stop"
        said = message.as_dict(self._shape)
        return {**self._head(), **said, "done": True, "done_reason": reason, **self._clock.figures(usage)}

    def _said(self, event: Delta) -> Iterator[_Message]:
        """What one delta makes certain."""
        if event.n_tokens:
            self._clock.saw()
        for said in joined(self._sorter.said(event)):
            yield from self._piece(said)
        if event.finish_reason is not None:
            yield from self._closed()

    def _piece(self, said: Said) -> Iterator[_Message]:
        piece = said.piece
        if isinstance(piece, CallArguments):
            self._arguments.append(piece.text)
            return
        yield from self._closed()
        if isinstance(piece, CallBegins):
            self._open = piece
        elif isinstance(piece, Content):
            yield _Message(content=piece.text, logprobs=said.tokens)
        else:
            yield _Message(thinking=piece.text, logprobs=said.tokens)

    def _closed(self) -> Iterator[_Message]:
        """The call that has ended."""
        if self._open is None:
            return
        arguments = arguments_of("".join(self._arguments))
        function = {"index": self._n_calls, "name": self._open.name, "arguments": arguments}
        yield _Message(calls=[{"id": self._open.id, "function": function}])
        self._open, self._arguments = None, []
        self._n_calls += 1


@dataclass(frozen=True)
class OllamaLines:
    """What a stream of Ollama's says beside its answer."""

    model: str
    shape: Shape

    def waiting(self, _model: str, _waiting: Waiting | None) -> bytes:
        """A line without text, which every client reads over: a comment there is not."""
        return self.keep_alive()

    def keep_alive(self) -> bytes:
        """The same between tokens."""
        said = _Message().as_dict(self.shape)
        return line({"model": self.model, "created_at": now_text(), **said, "done": False})

    def error(self, problem: ApiError) -> bytes:
        """A failure after the headers; no line with `done` follows it."""
        return line({"error": encodable(problem.message)})


def nothing_said(model: str, shape: Shape, reason: Literal["load", "unload"]) -> bytes:
    """The answer to a request that says nothing: the model has come or gone."""
    said = _Message().as_dict(shape)
    return to_json({"model": model, "created_at": now_text(), **said, "done": True, "done_reason": reason})
