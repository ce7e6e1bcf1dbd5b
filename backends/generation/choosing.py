"""From one row of logits to a token, and from the token to what a client sees of it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.engine import JobError
from backends.generation import sampling
from backends.messages import Delta

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from backends.constraints.masks import TokenMask
    from backends.generation.decoder import DecoderModel
    from backends.generation.sequence import Sequence
    from backends.messages import Event, FinishReason, TokenLogprob


_CACHED_PIECES: Final = 8192
"""Tokens whose bytes are at hand; a library is asked for the others."""


class Chooser:
    """The rules of one model."""

    def __init__(self, model: DecoderModel, *, shown_piece: Callable[[int], bytes], ends: NDArray[np.int32]) -> None:
        self._model = model
        self._shown_piece = lru_cache(_CACHED_PIECES)(shown_piece)
        self._piece = lru_cache(_CACHED_PIECES)(model.piece)
        self._end_ids = ends
        self._ends = frozenset(self._end_ids.tolist())

    def choose(self, sequence: Sequence, row: int, logits: NDArray[np.float32], best: int, events: list[Event]) -> bool:
        """Choose the sequence's next token from its `(n_vocab,) float32` logits; True when that ends the sequence.

        `row` is the batch row the logits belong to, `best` where they are highest, or the first that is no number.
        Raises JobError where they are no numbers to choose by.
        """
        if not math.isfinite(logits.item(best)):
            told = "the model computes no numbers behind this text (NaN or infinity). hint: its weights may be damaged"
            raise JobError("internal_error", told)
        job = sequence.request.job
        raw = sampling.logprobs(logits, job.logprobs) if job.logprobs is not None else None
        guide, greedy = sequence.guide, sequence.sampler.greedy
        if job.ignore_eos or len(sequence.generated) < job.min_tokens:
            if not greedy or guide is not None:
                sampling.forbid(logits, self._end_ids)
            elif best in self._ends:
                sampling.forbid(logits, self._end_ids)
                best = int(logits.argmax())
        allowed = None if guide is None else guide.allowed()
        if allowed is not None:
            sampling.allow_only(logits, allowed)
            if logits.max() == -np.inf:  # nothing but an end may follow, and ends were forbidden
                return self._finish(sequence, _ending(guide), events)
        if guide is not None and greedy:
            best = int(logits.argmax())
        token = best if greedy else sequence.sampler.sample(row)
        if allowed is not None and not allowed[token]:  # the draw is of rounded sums
            token = int(logits.argmax())
        if guide is not None:
            token = guide.instead(token)
            guide.accept(token)
        sequence.token = token
        sequence.generated.append(token)
        sequence.n_unsent += 1
        piece = self._shown(sequence, token)
        logprob = sampling.describe(token, *raw, self._model.literal, wrote=piece) if raw is not None else None
        if token in self._ends:
            # Scoring a prompt counts the tokens behind it; in an answer an end is no token.
            return self._finish(sequence, _ending(guide), events, last=logprob if job.echo else None)
        return self._emit(sequence, piece, logprob, events)

    def follow(self, sequence: Sequence, token: int) -> None:
        """Take in a token that was chosen and told of before the sequence was preempted."""
        if sequence.guide is not None:
            sequence.guide.accept(token)
        sequence.sampler.accept(token)
        sequence.generated.append(token)
        sequence.n_unsent += 1
        self._emit(sequence, self._shown(sequence, token), None, [])

    def _shown(self, sequence: Sequence, token: int) -> bytes:
        return (self._shown_piece if sequence.request.shows_marks else self._piece)(token)

    def cut(self, sequence: Sequence, events: list[Event]) -> None:
        """End a choice as it is, as at `max_tokens`."""
        self._finish(sequence, "length", events)

    def _emit(self, sequence: Sequence, piece: bytes, logprob: TokenLogprob | None, events: list[Event]) -> bool:
        job, n_generated = sequence.request.job, len(sequence.generated)
        if n_generated == job.min_tokens + 1:  # text of the first `min_tokens` is no part of a stop string
            sequence.text.stops = tuple(job.stop)
        text, logprobs, stop = sequence.text.push(piece, logprob)
        if stop is not None:
            return self._end(sequence, "stop", text, logprobs, events, stop=stop)
        if sequence.guide is not None and sequence.guide.ended:
            return self._finish(sequence, _ending(sequence.guide), events, head=text, logprobs=logprobs)
        if n_generated >= sequence.request.limit:
            return self._finish(sequence, "length", events, head=text, logprobs=logprobs)
        if text or logprobs:
            shown = logprobs if job.logprobs is not None else None
            events.append(Delta(job.id, sequence.index, text, sequence.n_unsent, shown))
            sequence.n_unsent = 0
        return False

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        events: list[Event],
        *,
        head: str = "",
        logprobs: list[TokenLogprob] | None = None,
        last: TokenLogprob | None = None,
    ) -> bool:
        """End a choice that no stop string ended: what its text still held back goes out."""
        tail, tail_logprobs, stop = sequence.text.flush(cut=reason == "length")
        shown = (logprobs or []) + tail_logprobs + ([] if last is None else [last])
        return self._end(sequence, "stop" if stop else reason, head + tail, shown, events, stop=stop)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        text: str,
        logprobs: list[TokenLogprob],
        events: list[Event],
        *,
        stop: str | None,
    ) -> bool:
        job = sequence.request.job
        shown = logprobs if job.logprobs is not None else None
        events.append(Delta(job.id, sequence.index, text, sequence.n_unsent, shown, reason, stop))
        return True


def _ending(guide: TokenMask | None) -> FinishReason:
    """Why a text ends that the model or its grammar ended."""
    return "tool_calls" if guide is not None and guide.called else "stop"
