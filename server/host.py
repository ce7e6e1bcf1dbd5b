"""How much memory the machine, or the container around this process, has left, from the kernel's files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
_CGROUPS: Final = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Version 2, then version 1: limit, usage, and where the reclaimable page cache in the usage is told."""


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that programs can still take: the smaller of the machine's and the container's."""
    meminfo = _table(root / "proc/meminfo")
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) * 1024
    for limit, usage, stat, reclaimable in _CGROUPS:
        limit_bytes, used_bytes = _number(root / limit), _number(root / usage)
        if limit_bytes is not None and used_bytes is not None:
            cache_bytes = _table(root / stat).get(reclaimable, 0)
            available = min(available, limit_bytes - used_bytes + cache_bytes)
            break
    return max(available, 0)


def total_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory the machine or the container has."""
    total = _table(root / "proc/meminfo").get("MemTotal", 0) * 1024
    limits = [n for n in (_number(root / limit) for limit, *_ in _CGROUPS) if n is not None]
    return min([total, *limits])


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {row[0]: int(row[1]) for row in words if len(row) >= 2 and row[1].isdecimal()}


def _number(path: Path) -> int | None:
    """The number in a file; None when there is no file or it says `max`."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
