"""What ends a run: a sentence for the user and whether the request itself was wrong, or an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class QuantizeError(Exception):
    """Work that cannot be done; the message says what happened, with the numbers, then what to do."""

    def __init__(self, message: str, *, usage: bool = False, does_not_fit: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage
        """The request can never succeed as it was given (exit code 2), as against failed work (exit code 1)."""
        self.does_not_fit = does_not_fit
        """No type is small enough for the memory that was named (exit code 3)."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; what was finished before is there, and nothing else."""

    def __init__(self, written: Sequence[Path]) -> None:
        super().__init__()
        self.written = tuple(written)
