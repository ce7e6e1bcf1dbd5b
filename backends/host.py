"""How much memory the machine, or the container around this process, has left, from the kernel's files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
TEST_FREE_FILE: Final = "ONECARD_TEST_FREE_FILE"
"""Environment variable with which tests name a file that holds the free bytes, in place of the kernel's figures."""
_CGROUPS: Final = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", ""),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_",
    ),
)
"""Version 2, then version 1: limit, usage, and where and under which prefix the page cache in the usage is told."""


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that programs can still take: the smaller of the machine's and the container's."""
    if simulated := os.environ.get(TEST_FREE_FILE):
        return _number(Path(simulated)) or 0
    meminfo = _table(root / "proc/meminfo")
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) * 1024
    for limit, usage, stat, prefix in _CGROUPS:
        limit_bytes, used_bytes = _number(root / limit), _number(root / usage)
        if limit_bytes is not None and used_bytes is not None:
            told = _table(root / stat)  # mapped weights are active pages, and as reclaimable as the inactive ones
            cache_bytes = told.get(f"{prefix}inactive_file", 0) + told.get(f"{prefix}active_file", 0)
            available = min(available, limit_bytes - used_bytes + cache_bytes)
            break
    return max(available, 0)


def total_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory the machine or the container has."""
    total = _table(root / "proc/meminfo").get("MemTotal", 0) * 1024
    limits = [n for n in (_number(root / limit) for limit, *_ in _CGROUPS) if n is not None]
    return min([total, *limits])


def anonymous_bytes(pid: int, root: Path = _ROOT) -> int:
    """Bytes of memory a process has for itself alone; 0 when it is gone."""
    return _table(root / f"proc/{pid}/status").get("RssAnon", 0) * 1024


def memory_folders(root: Path = _ROOT) -> list[Path]:
    """Folders that lie in memory (tmpfs) and can be written to, the usual one first."""
    named = ["/dev/shm", os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108
    try:
        rows = [line.split() for line in (root / "proc/mounts").read_text(errors="replace").splitlines()]
    except OSError:
        return []
    kinds = {Path(row[1]): row[2] for row in rows if len(row) > 2}
    found = []
    for folder in dict.fromkeys(Path(name) for name in named if name):
        mount = next((parent for parent in (folder, *folder.parents) if parent in kinds), None)
        if mount is not None and kinds[mount] == "tmpfs" and os.access(folder, os.W_OK | os.X_OK):
            found.append(folder)
    return found


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
