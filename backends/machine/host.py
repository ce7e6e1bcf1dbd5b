"""How much memory the machine, or the container around this process, has left, from the kernel's files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path("/")
TEST_FREE_FILE: Final = "ONECARD_TEST_FREE_FILE"
"""Environment variable with which tests name a file that holds the free bytes, in place of the kernel's figures."""
_CGROUPS: Final = (
    ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Version 2, then version 1: where, limit, usage, and the prefix of the page cache's lines in memory.stat."""


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that programs can still take: the smallest of the machine's and of every limit around this process."""
    if simulated := os.environ.get(TEST_FREE_FILE):
        return _number(Path(simulated)) or 0
    meminfo = _table(root / "proc/meminfo")
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0)) * 1024
    for folder, limit_bytes, usage, prefix in _limits(root):
        used_bytes = _number(folder / usage)
        if used_bytes is not None:
            told = _table(
                folder / "memory.stat"
            )  # mapped weights are active pages, and as reclaimable as inactive ones
            cache_bytes = told.get(f"{prefix}inactive_file", 0) + told.get(f"{prefix}active_file", 0)
            available = min(available, limit_bytes - used_bytes + cache_bytes)
    return max(available, 0)


def installed_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory the machine has, whatever of it this process may use."""
    return _table(root / "proc/meminfo").get("MemTotal", 0) * 1024


def total_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory the machine has, or the container or service around this process."""
    total = installed_bytes(root)
    return min([total, *(limit_bytes for _, limit_bytes, _, _ in _limits(root))])


def _limits(root: Path) -> Iterator[tuple[Path, int, str, str]]:
    """Every control group around this process that has a limit, as far as it is visible from here."""
    for base, limit, usage, prefix in _CGROUPS:
        own = _own_group(root, controller="memory" if prefix else "")
        for folder in (root / base / own, *(root / base / parent for parent in own.parents)):
            limit_bytes = _number(folder / limit)
            if limit_bytes is not None:
                yield folder, limit_bytes, usage, prefix


def _own_group(root: Path, *, controller: str) -> PurePosixPath:
    """Of `/proc/self/cgroup`, relative to where the groups are mounted; in a container mostly the mount itself."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controller in controllers.split(",") and ".." not in path.split("/"):
            return PurePosixPath(path.lstrip("/"))
    return PurePosixPath()


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


def cache_bytes(root: Path = _ROOT) -> int:
    """Bytes of the processor's last-level cache, as the kernel tells them; 0 where it does not."""
    found = []
    for folder in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            text = (folder / "size").read_text(encoding="ascii").strip()
        except OSError:
            continue
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        number = text.rstrip("KMG")
        found.append(int(number) * unit if number.isdecimal() else 0)
    return max(found, default=0)


def processor(root: Path = _ROOT) -> str:
    """What the kernel calls the processor, and how many of its cores this process may use."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return f"{next(names, 'unknown')} x{len(os.sched_getaffinity(0))}"
