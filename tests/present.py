"""What a test knows to be there, said to the type checker and to who reads a failure."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value, which is not None."""
    assert value is not None, "it is None"
    return value
