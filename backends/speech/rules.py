"""Which token may come next in a window, and what its tokens are as text with times. Pure, as Whisper's authors do it.

Source: https://github.com/openai/whisper/blob/main/whisper/decoding.py (ApplyTimestampRules) and transcribe.py
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.speech.tokens import Tokens

MOST_TOKENS: Final = 224
"""Of a window, half of what the decoder has places for."""
LATEST_START: Final = 50
"""Times: the first is at most one second."""
REPEATS: Final = 2.4
"""Text that is compressed better than this repeats itself."""
UNLIKELY: Final = -1.0
"""Text with a lower mean log-probability is no good."""
SILENT: Final = 0.6
"""Probability of no speech above which unlikely text is none."""


@dataclass(frozen=True)
class Allowed:
    """Ranges of tokens that may not come next."""

    banned: tuple[tuple[int, int], ...]


def allowed(ids: Sequence[int], tokens: Tokens) -> Allowed:
    """After these tokens of a window; times come in pairs and never go back."""
    first, end, n = tokens.first_time, tokens.end, tokens.n_vocab
    banned = [tokens.special]
    if not ids:
        return Allowed((*banned, (0, first), (first + LATEST_START + 1, n)))
    was_time = ids[-1] >= first
    before_was_time = len(ids) < 2 or ids[-2] >= first
    if was_time:
        banned.append((first, n) if before_was_time else (0, end))
    last = next((one for one in reversed(ids) if one >= first), None)
    if last is not None:
        lowest = last if was_time and not before_was_time else last + 1
        banned.append((first, lowest))
    return Allowed(tuple(banned))


def compression_ratio(text: str) -> float:
    """Bytes of a text for each byte that it is compressed to."""
    raw = text.encode("utf-8", "replace")
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


@dataclass(frozen=True)
class Stretch:
    """Tokens between two times of a window."""

    begin_s: float
    end_s: float
    ids: tuple[int, ...]
    first: int
    """Place of its first token among those of the window."""


def stretches(ids: Sequence[int], tokens: Tokens, *, duration_s: float, time_s: float) -> tuple[list[Stretch], float]:
    """The text between times, and up to where the window is done: it may have ended in the middle of a sentence."""
    found: list[Stretch] = []
    text: list[int] = []
    begin_s, first = 0.0, 0
    for place, one in enumerate(ids):
        if one < tokens.first_time:
            first = first if text else place
            text.append(one)
            continue
        at_s = min((one - tokens.first_time) * time_s, duration_s)
        if text:
            found.append(Stretch(min(begin_s, at_s), at_s, tuple(text), first))
            text = []
        begin_s = at_s
    if text:
        found.append(Stretch(min(begin_s, duration_s), duration_s, tuple(text), first))
        if len(ids) >= MOST_TOKENS and len(found) > 1:
            return found[:-1], found[-2].end_s
    ends_in_pair = len(ids) > 1 and ids[-1] >= tokens.first_time and ids[-2] >= tokens.first_time
    return found, begin_s if ends_in_pair and not text else duration_s
