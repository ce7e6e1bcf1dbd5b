"""Bytes as people write them: parsing `12GiB` and printing `11.2 GiB`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([a-z]{0,3})", re.IGNORECASE | re.ASCII)


def parse_size(value: object) -> int:
    """Bytes of `12GiB`, `600 MiB`, `12GB`, `11.2GiB` or a plain number of bytes; raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        n_bytes = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())) and match[2].lower() in _UNITS:
        number, unit = match[1], match[2].lower()
        if "." in number and _UNITS[unit] == 1:
            raise ValueError("a number of bytes is a whole number")
        n_bytes = int(float(number) * _UNITS[unit]) if "." in number else int(number) * _UNITS[unit]
    else:
        raise ValueError("a size looks like 12GiB, 600MiB, 12GB or a plain number of bytes")
    if not 0 <= n_bytes < 2**63:
        raise ValueError("a size lies between 0 and 2^63 bytes")
    return n_bytes


def format_size(n_bytes: int) -> str:
    """`11.2 GiB`, `600 MiB`, `3.4 MiB`, `512 B`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            value = n_bytes / scale
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{n_bytes} B"


def format_share(n_bytes: int, of_bytes: int) -> str:
    """`10.9 of 12 GiB`, `600 MiB of 12 GiB`."""
    part, whole = format_size(n_bytes), format_size(of_bytes)
    unit = f" {whole.split()[1]}"
    return f"{part.removesuffix(unit)} of {whole}"


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(ge=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["12GiB", "600MiB"]}]}),
]
"""A number of bytes, written as a size."""
