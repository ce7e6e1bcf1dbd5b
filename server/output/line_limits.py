"""When a fill-in-the-middle answer ends by the clock or by its indentation, although the model would go on.

Pure: time is an argument. The rules are llama.cpp's, with one more: a line that never ends has a limit as well.
"""

from __future__ import annotations

from dataclasses import dataclass

_PATIENCE = 2.0
"""Once the time is up the line may be finished, but not for longer than this many times the limit in all."""


@dataclass(frozen=True)
class LineLimits:
    """Seconds for computing the prompt and for the answer; spaces that every line but the first must begin with."""

    prompt_s: float | None = None
    predict_s: float | None = None
    indent: int = 0


class LineWatch:
    """Watches one answer against its limits."""

    def __init__(self, limits: LineLimits) -> None:
        self._limits = limits
        self._started: float | None = None
        self._first: float | None = None
        self._column: int | None = None
        """Spaces at the start of the line so far; None in its words, and in the first line."""

    @property
    def deadline(self) -> float | None:
        """When waiting for more has to end."""
        limits = self._limits
        if self._first is not None:
            return None if limits.predict_s is None else self._first + _PATIENCE * limits.predict_s
        return None if limits.prompt_s is None or self._started is None else self._started + limits.prompt_s

    def begin(self, now: float) -> None:
        """The prompt is being computed."""
        self._started = now

    def text(self, text: str, now: float) -> tuple[str, bool]:
        """How much of the new text belongs to the answer, and whether the answer ends with it."""
        if self._first is None:
            self._first = now
        kept = self._indented(text)
        if len(kept) < len(text):
            return kept, True
        late = self._limits.predict_s is not None and now - self._first > self._limits.predict_s
        if late and (end := text.rfind("\n")) >= 0:
            return text[: end + 1], True
        return text, False

    def _indented(self, text: str) -> str:
        """The text up to the first word of a line that begins too far left; empty lines may."""
        if not self._limits.indent:
            return text
        for at, char in enumerate(text):
            if char == "\n":
                self._column = 0
            elif self._column is not None:
                if char in " \t":
                    self._column += 1
                elif self._column < self._limits.indent:
                    return text[:at]
                else:
                    self._column = None
        return text
