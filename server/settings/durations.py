"""Durations as people and Go's programs write them: seconds, `30s`, `1h30m`, `1.5h`, `2d`."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_S: Final = 2.0**63 / 1e9
"""Go's longest duration, 292 years: clients send it, and what is near it, for `for ever`."""
FORMS: Final = "seconds, or a duration such as '30s', '5m', '1h30m' or '2d'"
_UNIT_S: Final[Mapping[str, float]] = MappingProxyType(
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
)
_NUMBER: Final = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_UNIT: Final = "|".join(sorted(_UNIT_S, key=len, reverse=True))
_PART: Final = re.compile(rf"({_NUMBER})({_UNIT})")
_WHOLE: Final = re.compile(rf"([+-]?)((?:{_NUMBER}(?:{_UNIT}))+|{_NUMBER})")


def parse_duration(text: str) -> float:
    """The seconds of a text; raises ValueError for one that is no duration."""
    found = _WHOLE.fullmatch(text)
    if found is None:
        raise ValueError(f"a time is {FORMS}")
    parts = _PART.findall(found[2])
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts) if parts else float(found[2])
    return -seconds if found[1] == "-" else seconds


def seconds_of(value: object) -> object:
    """A text as its seconds, anything else as it is. Raises ValueError."""
    return parse_duration(value) if isinstance(value, str) else value


def keep_alive_of(value: object) -> object:
    """The same, where a text that is negative means for ever: -1."""
    seconds = seconds_of(value)
    return -1.0 if isinstance(value, str) and isinstance(seconds, float) and seconds < 0 else seconds
