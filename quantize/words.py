"""Small wordings that several rooms print: sizes, durations, the nearest name, a stranger's name made printable."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def size(n_bytes: int) -> str:
    """`4.7 GiB`, `600 MiB`, `10 MiB`, `512 B`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            value = n_bytes / scale
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{n_bytes} B"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.2 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, or none that is near."""
    by_upper = {entry.upper(): entry for entry in known}
    found = difflib.get_close_matches(name.upper(), by_upper, n=1, cutoff=0.5)
    return by_upper[found[0]] if found else None


def shown(text: str) -> str:
    """A name from a stranger's file, short and printable."""
    return repr(text[:80])
