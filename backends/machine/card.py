"""The free memory of the graphics card that this process will use, as the driver tells it. Imports NVML when asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class HiddenError(Exception):
    """CUDA shows no card to this process and its children."""


def free_bytes() -> int | None:
    """Bytes that are free on the first card CUDA shows to this process; None where that cannot be told."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(first(pynvml, os.environ)).free)
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # whatever the driver or its library does, a load goes on without the figure
        return None


def first(pynvml: Any, environ: Mapping[str, str]) -> Any:
    """The library's handle of the first card that CUDA shows. Raises HiddenError, or what the library raises."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible))
    if not visible.startswith(("GPU-", "MIG-")):
        raise HiddenError(f"CUDA_VISIBLE_DEVICES={visible} hides every card")
    return pynvml.nvmlDeviceGetHandleByUUID(visible)
