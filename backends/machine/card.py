"""The free memory of the graphics card that this process will use, as the driver tells it. Imports NVML when asked."""

from __future__ import annotations

import os
from typing import Any


def free_bytes() -> int | None:
    """Bytes that are free on the first card CUDA shows to this process; None where that cannot be told."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(_handle(pynvml)).free)
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # whatever the driver or its library does, a load goes on without the figure
        return None


def _handle(pynvml: Any) -> Any:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible))
    return pynvml.nvmlDeviceGetHandleByUUID(visible)
