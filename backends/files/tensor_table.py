"""The table at the start of a safetensors file: no name twice, and tensors that lie end to end and fill the file. Pure.

The rule of the safetensors library, for all who read such a file: bytes that two tensors share, or that none owns, are
what a file holds that two readers see differently. A name with the same bytes twice is refused too.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.files.model_files import FileError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable


class Span(NamedTuple):
    """Where a tensor lies, counted from the first byte behind the table."""

    start: int
    end: int
    name: str


class _TwiceError(Exception):
    """A key that an object has twice."""


def parsed(raw: bytes, file: str) -> dict[str, Any]:
    """The table. Raises FileError where it is none, or has a name twice."""
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise FileError(f"the header of {shown(file)} is nested deeper than any model's file is") from None
    except ValueError:
        raise FileError(f"the header of {shown(file)} is not JSON. hint: was it downloaded completely?") from None
    except _TwiceError as twice:
        raise FileError(f"the header of {shown(file)} names {str(twice)[:80]!r} twice") from None
    if not isinstance(table, dict):
        raise FileError(f"the header of {shown(file)} is not a table of tensors")
    return table


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _TwiceError(key)
            seen.add(key)
    return table


def check_layout(spans: Iterable[Span], data_bytes: int, file: str) -> None:
    """Raises FileError unless the tensors lie end to end, from the first byte behind the table to the last."""
    ordered = sorted(spans)
    for span in ordered:
        if span.end > data_bytes:
            raise FileError(
                f"tensor {span.name[:80]!r} ends at byte {span.end} of the data, and {shown(file)} holds {data_bytes}: "
                "it is cut or wrong"
            )
    for one, other in itertools.pairwise(ordered):
        if one.end != other.start:
            what = "overlap" if one.end > other.start else "leave a gap"
            raise FileError(f"tensors {one.name[:80]!r} and {other.name[:80]!r} {what} in {shown(file)}")
    if (ordered[0].start if ordered else 0, ordered[-1].end if ordered else 0) != (0, data_bytes):
        raise FileError(f"the tensors of {shown(file)} do not fill it: it is cut or wrong")
