"""What every answer has in common: who answers, what it cost, and the frames of a stream.

Bytes that stay the same over a stream are made once; see `chat` and `completions` for the choices.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from backends.messages import Finished, Ready, TokenLogprob
    from server.errors import ApiError
    from server.pool.stream import Waiting

DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
LOWEST_LOGPROB = -9999.0
"""Stands for "no chance at all": JSON has no infinity."""

to_json = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Head:
    """The fields that open every object of one answer."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, Any]:
        """In OpenAI's order."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def fingerprint(model: str, ready: Ready | None) -> str:
    """Stays the same as long as the model and the way it is run do."""
    run = "" if ready is None else f"{ready.engine}|{ready.facts}|{ready.layers}"
    return "fp_" + hashlib.sha256(f"{model}|{run}".encode()).hexdigest()[:12]


@dataclass
class Usage:
    """Tokens of one answer, summed over its jobs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    foretold_tokens: int = 0
    refuted_tokens: int = 0
    """Of a prediction: those that came, and those that did not."""

    def add(self, finished: Finished) -> None:
        """One more job is done."""
        self.prompt_tokens += finished.prompt_tokens
        self.completion_tokens += finished.completion_tokens
        self.cached_tokens += finished.cached_tokens
        self.reasoning_tokens += finished.reasoning_tokens
        self.foretold_tokens += finished.foretold_tokens
        self.refuted_tokens += finished.refuted_tokens

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": self.foretold_tokens,
                "rejected_prediction_tokens": self.refuted_tokens,
            },
        }


class Framer:
    """The frames of one stream: fixed bytes around each choice."""

    def __init__(self, head: Head, kind: str, *, include_usage: bool) -> None:
        self._open = b"data: " + to_json(head.fields(kind))[:-1] + b',"choices":['
        self._close = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def frame(self, choice: bytes) -> bytes:
        """One event with one choice."""
        return self._open + choice + self._close

    def usage(self, usage: Usage) -> bytes:
        """The event before the last: no choice, all tokens."""
        return self._open + b'],"usage":' + to_json(usage.as_dict()) + b"}\n\n"


class Comments:
    """What a stream of completions says beside its answer: SSE comments, and OpenAI's error frame."""

    def waiting(self, model: str, waiting: Waiting | None) -> bytes:
        """`: queued position=2 estimate_s=4` or `: loading chat 40% ...` for a client whose job has not begun."""
        if waiting is None:
            return WAITING
        estimate_s = math.ceil(waiting.estimate_s)
        if waiting.loaded is None:
            return f": queued position={waiting.position} estimate_s={estimate_s}\n\n".encode()
        return f": loading {model} {waiting.loaded:.0%} estimate_s={estimate_s}\n\n".encode()

    def keep_alive(self) -> bytes:
        """A sign of life between tokens."""
        return KEEP_ALIVE

    def error(self, problem: ApiError) -> bytes:
        """A failure after the headers. No `[DONE]` follows it: a clean end would look like success."""
        return b"data: " + problem.body() + b"\n\n"


def logprob(value: float | None) -> float | None:
    """A log-probability that JSON can hold; None where there is none."""
    return None if value is None else max(LOWEST_LOGPROB, value)


def chat_logprobs(tokens: list[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities in the shape of chat completions."""
    return {"content": [_token(token, with_top=True) for token in tokens], "refusal": None}


def _token(token: TokenLogprob, *, with_top: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "token": token.token,
        "logprob": logprob(token.logprob),
        "bytes": list(token.bytes),
    }
    if with_top:
        entry["top_logprobs"] = [_token(other, with_top=False) for other in token.top]
    return entry
