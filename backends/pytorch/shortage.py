"""Out of memory in PyTorch: known by what libraries raise, and told with what was asked for and what there is."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Final

import torch

_SAID: Final = ("can't allocate memory", "bad_alloc", "Unable to allocate", "can't start new thread")
_VAGUE: Final = ("could not create a primitive", "could not execute a primitive", "could not create a memory")
"""oneDNN's words for many things; with so little left that is what they mean."""
_LITTLE_BYTES: Final = 512 * 2**20
_BYTES: Final = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
_ARRAY: Final = re.compile(r"Unable to allocate ([\d.]+) (bytes|[KMGT]iB)")
_UNITS: Final = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def is_shortage(error: BaseException) -> bool:
    """Whether there was no memory, on a card or off it."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(said in text for said in _SAID):
        return True
    return any(said in text for said in _VAGUE) and free_bytes(on_card=False) < _LITTLE_BYTES


def told(error: BaseException) -> str:
    """What was asked for and what is free, as the end of a sentence."""
    asked = _asked_bytes(str(error))
    wanted = f"{_size(asked)} more" if asked is not None else "more than there is"
    free = free_bytes(on_card=isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available())
    return f"PyTorch asked for {wanted}, and {_size(free)} is free"


def _asked_bytes(text: str) -> int | None:
    found = _BYTES.search(text) or _ARRAY.search(text)
    return round(float(found[1]) * _UNITS[found[2]]) if found is not None and found[2] in _UNITS else None


def free_bytes(*, on_card: bool) -> int:
    """What this process could still take: of the card, or of the machine and of its own limit."""
    if on_card:
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    machine = _kib("/proc/meminfo", "MemAvailable")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return (
        machine
        if limit == resource.RLIM_INFINITY
        else max(0, min(machine, limit - _kib("/proc/self/status", "VmSize")))
    )


def _kib(path: str, name: str) -> int:
    """A line's number of KiB, in bytes."""
    for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _size(n_bytes: int) -> str:
    unit = max((unit for unit, size in _UNITS.items() if n_bytes >= size), key=lambda u: _UNITS[u], default="bytes")
    return f"{n_bytes} bytes" if unit == "bytes" else f"{n_bytes / _UNITS[unit]:.1f} {unit}"
