"""Compares one model with the source over a text, window by window, both loaded at once, and measures its speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from quantize.errors import QuantizeError
from quantize.scores.divergence import DivergenceTally, Quality, windows
from quantize.scores.reader import LogitsReader, reading

WINDOW_TOKENS: Final = 512
SPEED_PROMPT_TOKENS: Final = 256
SPEED_DECODE_TOKENS: Final = 32

Progress = Callable[[int, int, float], None]
"""Windows done, windows in all, seconds left."""


@dataclass(frozen=True)
class Scores:
    """One line of the report."""

    quality: Quality
    prefill_per_s: float
    decode_per_s: float


def compare(
    source: Path,
    other: Path,
    text: Path,
    *,
    n_ctx: int,
    most_windows: int,
    threads: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """`other` against `source`; the same path twice gives the source's own line. Raises QuantizeError.

    `threads` is for each of the two models; 0 takes all.
    """
    size = min(WINDOW_TOKENS, n_ctx)
    with reading(source, n_ctx=size, threads=threads) as base:
        parts = windows(base.tokenize(text), size=size, first_token=base.first_token, most=most_windows)
        if not parts:
            raise QuantizeError(f"the text {text.name} is shorter than one window of {size} tokens")
        if other == source:
            return Scores(_tally(base, None, parts, progress), *_speed(base, size))
        with reading(other, n_ctx=size, threads=threads) as model:
            if base.n_vocab != model.n_vocab:
                raise QuantizeError(
                    f"{other.name} has {model.n_vocab} tokens, the source {base.n_vocab}: another model"
                )
            quality = _tally(base, model, parts, progress)
    with reading(other, n_ctx=size, threads=threads) as model:
        return Scores(quality, *_speed(model, size))


def _speed(model: LogitsReader, n_ctx: int) -> tuple[float, float]:
    n_decode = min(SPEED_DECODE_TOKENS, n_ctx // 4)
    return model.speed(n_prompt=min(SPEED_PROMPT_TOKENS, n_ctx - n_decode), n_decode=n_decode)


def _tally(
    base: LogitsReader, model: LogitsReader | None, parts: list[list[int]], progress: Progress | None
) -> Quality:
    """Every window's second half is scored: there each token has at least half a window before it."""
    tally = DivergenceTally()
    started = time.monotonic()
    for done, window in enumerate(parts, 1):
        first = len(window) // 2
        following = np.array([*window[first + 1 :], -1], np.int64)
        base.begin(window, first)
        if model is not None:
            model.begin(window, first)
        at = 0
        others = model.rows() if model is not None else None
        for rows in base.rows():
            other_rows = next(others) if others is not None else rows
            n = min(len(rows), len(window) - first - 1 - at)  # nothing follows the last token
            if n > 0:
                tally.add(rows[:n], other_rows[:n], following[at : at + n])
            at += len(rows)
        if others is not None:
            next(others, None)
        if progress is not None:
            progress(done, len(parts), (time.monotonic() - started) / done * (len(parts) - done))
    return tally.result()
