"""Whisper as a listener: languages, tokens, and their times as segments and words."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import torch
from msgspec.structs import replace

from backends.engine import JobError
from backends.speech import rules
from backends.speech.choice import Row
from backends.speech.kind import TRANSLATION, Segment, Transcribe, Word
from backends.speech.listening import Asked, Found

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from backends.speech.alignment import Aligner
    from backends.speech.recogniser import Decoded, Recogniser
    from backends.speech.windows import Window

_LEAST_REST_S: Final = 1.0
"""Less than that is not computed again."""
_TIME_S: Final = 0.02
_SLACK_S: Final = 0.8
"""By which the times of a segment may miss a pause that was left out."""


class WhisperListener:
    """See `backends.speech.listening.Listener`."""

    def __init__(self, recogniser: Recogniser, aligner: Aligner) -> None:
        self._recogniser = recogniser
        self._aligner = aligner

    def asked(self, job: Transcribe) -> Asked:
        """Its language and its prompt as tokens. Raises JobError."""
        tokens = self._recogniser.tokens
        if job.task == "translate" and not tokens.multilingual:
            message = f"this model hears English alone and has no {TRANSLATION}. hint: a multilingual Whisper"
            raise JobError("invalid_value", message, param="model")
        code = tokens.code(job.language) if job.language is not None else None if tokens.multilingual else "en"
        return Asked(job.task, code, tokens.prompt(job.prompt, most=rules.MOST_TOKENS - 1), job.temperature, job.words)

    def listen(self, windows: Sequence[Window], asked: Sequence[Asked]) -> Generator[None, None, list[Found | None]]:
        """Hidden states, languages, tokens, segments; a turn for others in between."""
        recogniser = self._recogniser
        rows = []
        for some in recogniser.batches([window.samples for window in windows]):
            rows.append(recogniser.encode(some))
            yield
        hidden = torch.cat(rows)
        sound = recogniser.sound(hidden)
        codes = [one.code for one in asked]
        unknown = [row for row, code in enumerate(codes) if code is None]
        if unknown:
            for row, code in zip(unknown, recogniser.languages(sound.only(unknown)), strict=True):
                codes[row] = code
            yield
        known = [code or "en" for code in codes]
        begun = [
            Row(one.prompt, recogniser.tokens.opening(code, one.task), one.temperature)
            for code, one in zip(known, asked, strict=True)
        ]
        decoded = yield from recogniser.recognise(sound, begun)
        found: list[Found | None] = []
        for row, one in enumerate(decoded):
            is_sound = math.isfinite(one.avg_logprob)
            here = hidden[row : row + 1]
            found.append(
                self._found(windows[row], asked[row], known[row], one, here, begun[row].opening) if is_sound else None
            )
            yield
        return found

    def _found(
        self, window: Window, asked: Asked, code: str, decoded: Decoded, hidden: torch.Tensor, opening: list[int]
    ) -> Found:
        """The window's text with times."""
        tokens = self._recogniser.tokens
        if decoded.is_silence:
            return Found(code, [], len(decoded.ids))
        found, done_s = rules.stretches(decoded.ids, tokens, duration_s=window.duration_s, time_s=_TIME_S)
        is_left = found and window.duration_s - done_s >= _LEAST_REST_S and done_s > 0
        rest = window.rest(done_s) if is_left else None
        segments = [
            Segment(
                text=text,
                start_s=round(_begin(window, one), 2),
                end_s=round(window.time_s(one.end_s, end=True, slack_s=_SLACK_S), 2),
                tokens=_with_times(decoded.ids, one, tokens.first_time),
                seek=round(window.parts[0][1] * 100),
                temperature=decoded.temperature,
                avg_logprob=decoded.avg_logprob,
                compression_ratio=decoded.compression_ratio,
                no_speech_prob=decoded.no_speech_prob,
            )
            for one in found
            if (text := tokens.text(one.ids)).strip()
        ]
        if not asked.words:
            return Found(code, segments, len(decoded.ids), rest)
        kept = [one for one in found if tokens.text(one.ids).strip()]
        ids = [token for one in kept for token in one.ids]
        words = self._aligner.words(hidden, window, opening, ids, code)
        return Found(code, _with_words(segments, [len(one.ids) for one in kept], words), len(decoded.ids), rest)


def _begin(window: Window, one: rules.Stretch) -> float:
    """Of a stretch in the recording: models round times to seconds, over the pauses that were left out."""
    begin_s = window.time_s(one.begin_s, slack_s=_SLACK_S)
    is_before_end = begin_s < window.time_s(one.end_s, end=True, slack_s=_SLACK_S)
    return begin_s if is_before_end else window.time_s(one.begin_s)


def _with_times(ids: Sequence[int], one: rules.Stretch, first_time: int) -> list[int]:
    """The tokens of a stretch with the times around it, as Whisper's own segments have them."""
    begin, end = one.first, one.first + len(one.ids)
    begin -= begin > 0 and ids[begin - 1] >= first_time
    end += end < len(ids) and ids[end] >= first_time
    return list(ids[begin:end])


def _with_words(segments: list[Segment], counts: list[int], words: list[tuple[Word, int]]) -> list[Segment]:
    """Each segment with its words, which lie inside it and follow one another."""
    left = deque(words)
    found: list[Segment] = []
    for segment, count in zip(segments, counts, strict=True):
        own: list[Word] = []
        at_s = segment.start_s
        while left and count > 0:
            word, n_tokens = left.popleft()
            count -= n_tokens
            start_s = min(max(word.start_s, at_s), segment.end_s)
            at_s = min(max(word.end_s, start_s), segment.end_s)
            if word.text:
                own.append(Word(word.text, start_s, at_s))
        found.append(replace(segment, words=tuple(own)))
    return found
