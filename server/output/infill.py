"""An infill as llama.cpp's clients read it: a stream of objects without an end mark, or one object.

Pure: deltas and the time in, bytes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.output.frame import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backends.messages import Delta, Started
    from server.output.frame import Head, Usage


class InfillAnswer:
    """One infill, streamed or collected. `clock` gives seconds."""

    def __init__(
        self,
        model: str,
        started: Started | None,
        *,
        settings: Mapping[str, Any],
        fields: Sequence[str] | None,
        silent: bool,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._started = started
        self._settings = settings
        self._fields = fields
        """What of the last object the client reads, as paths such as `timings/prompt_n`; None: all of it."""
        self._silent = silent
        self._clock = clock
        self._began = clock()
        self._first: float | None = None
        self._texts: list[str] = []
        self._n_tokens = 0
        self._last: Delta | None = None

    def add(self, event: Delta, _choice: int) -> None:
        """More of an infill that is not streamed."""
        self._first = self._first if self._first is not None else self._clock()
        self._n_tokens += event.n_tokens
        self._last = event
        if not self._silent:
            self._texts.append(event.text)

    def delta(self, event: Delta, choice: int) -> bytes:
        """The object of one delta; empty where it says nothing."""
        self.add(event, choice)
        if not event.text or self._silent:
            return b""
        return _frame(
            {
                "index": 0,
                "content": event.text,
                "tokens": [],
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": self._n_tokens,
                "tokens_evaluated": self._started.prompt_tokens if self._started else 0,
            }
        )

    def end(self, usage: Usage) -> bytes:
        """The object that closes a stream."""
        return _frame(self._picked(self._whole("", usage)))

    def body(self, _head: Head, usage: Usage) -> bytes:
        """The whole answer."""
        return to_json(self._picked(self._whole("".join(self._texts), usage)))

    def _whole(self, content: str, usage: Usage) -> dict[str, Any]:
        n_predicted = 0 if self._silent else usage.completion_tokens
        return {
            "index": 0,
            "content": content,
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": n_predicted,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": self._settings,
            "has_new_line": any("\n" in text for text in self._texts),
            "truncated": self._started is not None and self._started.omitted > 0,
            "stop_type": self._stop_type(),
            "stopping_word": (self._last.stop if self._last else None) or "",
            "tokens_cached": usage.prompt_tokens + n_predicted,
            "timings": self._timings(usage.prompt_tokens - usage.cached_tokens, usage.cached_tokens, n_predicted),
        }

    def _stop_type(self) -> str:
        if self._last is None or self._last.finish_reason is None:
            return "none"
        if self._last.stop is not None:
            return "word"
        return "eos" if self._last.finish_reason == "stop" else "limit"

    def _timings(self, n_prompt: int, n_cached: int, n_predicted: int) -> dict[str, Any]:
        end = self._clock()
        first = self._first if self._first is not None else end
        return {
            "cache_n": n_cached,
            **_speed("prompt", n_prompt, first - self._began),
            **_speed("predicted", n_predicted, end - first),
        }

    def _picked(self, whole: dict[str, Any]) -> dict[str, Any]:
        """The fields asked for, under their paths, as llama.cpp does."""
        if self._fields is None:
            return whole
        picked = {}
        for path in self._fields:
            value: Any = whole
            for key in path.split("/"):
                value = value.get(key, _NOTHING) if isinstance(value, dict) else _NOTHING
            if value is not _NOTHING:
                picked[path] = value
        return picked


_NOTHING = object()


def _speed(name: str, n: int, seconds: float) -> dict[str, Any]:
    milliseconds = seconds * 1000
    return {
        f"{name}_n": n,
        f"{name}_ms": round(milliseconds, 3),
        f"{name}_per_token_ms": round(milliseconds / n, 3) if n else 0.0,
        f"{name}_per_second": round(n / seconds, 3) if seconds > 0 else 0.0,
    }


def _frame(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
