"""Spans of the hours of a day, as configuration writes them: `09:00-18:00`. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

_SPAN: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_PATTERN: Final = rf"^{_SPAN.pattern}$"


def _checked(text: str) -> str:
    """Raises ValueError with a sentence."""
    begins, ends = minutes_of(text)
    if begins == ends:
        raise ValueError(f"'{text}' begins when it ends; leave the span out for the whole day, and set budget")
    return text


Span = Annotated[str, Field(pattern=_PATTERN, description="such as 09:00-18:00"), AfterValidator(_checked)]
"""Local time; one that ends before it begins goes over midnight."""


def minutes_of(span: str) -> tuple[int, int]:
    """When it begins and ends, in minutes since midnight. Raises ValueError."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise ValueError(f"'{span}' is no span of hours such as 09:00-18:00")
    hour, minute, end_hour, end_minute = map(int, found.groups())
    return 60 * hour + minute, 60 * end_hour + end_minute
