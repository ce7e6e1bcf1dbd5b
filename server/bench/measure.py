"""The figures of one model on one running server, at several numbers of streams, as its clients see them.

Prompts are tokens of an English text in random order: they have an exact length with any tokenizer, and no two share
a prefix, so that every one is computed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from server.bench.figures import median, percentile
from server.bench.load import Answer, SentRequest, completion, run

TEXT = (
    "The old lighthouse keeper counted ships each evening and wrote their names in a long blue book. When fog came in "
    "from the sea he lit the great lamp early, drank black tea, and listened for bells. One winter a young painter "
    "asked whether she could stay until spring; he gave her the small room above the store, with a window to the north."
)
PREFILL_TOKENS = 1024
"""Of the prompt that arrives beside running streams, where the context has room for it."""
_TAIL_TOKENS = 8


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds; None where nothing was measured."""

    p50: float | None
    p99: float | None
    max: float | None


class Row(msgspec.Struct, frozen=True):
    """What one number of streams gave."""

    parallel: int
    tokens_per_s: float
    ttft_ms: Spread
    itl_ms: Spread
    """Between texts as they arrive; quick tokens may come several in one text."""
    token_ms: float | None
    """A stream's time per token after its first token, median over the streams."""
    bare_tokens_per_s: float | None = None
    efficiency: float | None = None
    """`tokens_per_s` over `bare_tokens_per_s`."""
    prefill_itl_ms: float | None = None
    """The longest a running stream waited for text while a long prompt was computed."""
    prefill_ttft_ms: float | None = None
    """How long that prompt waited for its own first token."""


@dataclass(frozen=True)
class Target:
    """A model on a server."""

    url: str
    key: str | None
    model: str
    context: int
    parallel: int
    token_ids: Sequence[int]
    """Tokens of a text, to make prompts of."""


class Prompts:
    """Prompts of exact length that share no prefix."""

    def __init__(self, token_ids: Sequence[int], seed: int | None = None) -> None:
        self._ids = list(token_ids)
        self._random = random.Random(seed)  # noqa: S311 - nothing secret

    def make(self, n_tokens: int) -> list[int]:
        """One prompt."""
        return self._random.choices(self._ids, k=n_tokens)


def measure(
    target: Target, streams: Sequence[int], *, n_prompt: int, n_generate: int, rounds: int, say: Callable[[str], None]
) -> list[Row]:
    """One row per number of streams: the best rate, times of all rounds. Raises RuntimeError, TimeoutError, OSError.

    A round is one run of every number, so that a machine's slow moment does not fall on one number alone.
    """
    prompts = Prompts(target.token_ids)
    _send(target, [completion(target.model, prompts.make(n_prompt), 8) for _ in range(max(streams))])
    runs: dict[int, list[list[Answer]]] = {count: [] for count in streams}
    for index, count in itertools.product(range(rounds), streams):
        say(f"round {index + 1}/{rounds}: {count} at once")
        requests = [completion(target.model, prompts.make(n_prompt), n_generate) for _ in range(count)]
        runs[count].append(_send(target, requests))
    rows = [_row(count, runs[count]) for count in streams]
    say("a long prompt beside them")
    return [_with_prefill(row, target, prompts, n_prompt=n_prompt) for row in rows]


def _send(target: Target, requests: Sequence[SentRequest]) -> list[Answer]:
    """Every answer. Raises RuntimeError for any error."""
    answers = run(target.url, requests, timeout_s=3600, key=target.key)
    if errors := [answer.error for answer in answers if answer.error]:
        raise RuntimeError(f"{len(errors)} of {len(answers)} requests failed, the first with: {errors[0]}")
    return answers


def _rate(answers: Sequence[Answer]) -> float:
    n_tokens = sum(answer.completion_tokens for answer in answers)
    return n_tokens / (max(answer.ended_s for answer in answers) - min(answer.sent_s for answer in answers))


def _row(count: int, rounds: Sequence[Sequence[Answer]]) -> Row:
    answers = [answer for one in rounds for answer in one]
    pace = [
        (answer.ended_s - answer.text_at_s[0]) / (answer.completion_tokens - 1)
        for answer in answers
        if answer.text_at_s and answer.completion_tokens > 1
    ]
    return Row(
        parallel=count,
        tokens_per_s=max(map(_rate, rounds)),
        ttft_ms=_spread([answer.ttft_s for answer in answers]),
        itl_ms=_spread([itl for answer in answers for itl in answer.itls_s]),
        token_ms=_ms(median(pace)),
    )


def _with_prefill(row: Row, target: Target, prompts: Prompts, *, n_prompt: int) -> Row:
    """The row with what a long prompt does to the streams; without where the server has no room for one beside them."""
    long = min(PREFILL_TOKENS, target.context - _TAIL_TOKENS)
    decoding = min(row.parallel, target.parallel - 1)
    first_ms, pace_ms = row.ttft_ms.max, row.itl_ms.p50
    if decoding < 1 or long <= n_prompt or first_ms is None or pace_ms is None:
        return row
    streams = [
        completion(target.model, prompts.make(n_prompt), target.context - n_prompt, background=True)
        for _ in range(decoding)
    ]
    at_s = (2 * first_ms + 8 * pace_ms) / 1e3 + 0.1
    *beside, prompt = _send(target, [*streams, completion(target.model, prompts.make(long), _TAIL_TOKENS, at_s=at_s)])
    itl_ms = _longest_itl_ms(beside, prompt) if prompt.text_at_s else None
    return msgspec.structs.replace(row, prefill_itl_ms=itl_ms, prefill_ttft_ms=_ms(prompt.ttft_s))


def _longest_itl_ms(streams: Sequence[Answer], prompt: Answer) -> float | None:
    """Among ITLs that overlap the wait for the prompt's first token; None when a stream had ended before that."""
    began, ended = prompt.sent_s, prompt.text_at_s[0]
    if any(not stream.cut and stream.ended_s < ended for stream in streams):
        return None
    itls = [
        later - earlier
        for stream in streams
        for earlier, later in zip(stream.text_at_s, [*stream.text_at_s[1:], stream.ended_s], strict=True)
        if later > began and earlier < ended
    ]
    return _ms(max(itls, default=math.nan))


def _spread(seconds: Sequence[float]) -> Spread:
    return Spread(_ms(median(seconds)), _ms(percentile(seconds, 99)), _ms(max(seconds, default=math.nan)))


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds * 1e3
