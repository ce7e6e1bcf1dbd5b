"""The one exception of this package: a sentence for the user and whether the request itself was wrong."""

from __future__ import annotations


class QuantizeError(Exception):
    """Work that cannot be done; the message says what happened, with the numbers, then what to do."""

    def __init__(self, message: str, *, usage: bool = False, does_not_fit: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage
        """The request can never succeed as it was given (exit code 2), as against failed work (exit code 1)."""
        self.does_not_fit = does_not_fit
        """No type is small enough for the memory that was named (exit code 3)."""
