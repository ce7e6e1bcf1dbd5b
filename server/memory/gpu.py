"""The graphics card as NVIDIA's management library sees it, asked from a thread that may hang without hurting anyone.

Imports the library only when asked. Owns no decisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

ANSWER_WITHIN_S: Final = 5.0

T = TypeVar("T")


class GpuError(Exception):
    """No card, no driver, or one that does not answer."""


@dataclass(frozen=True)
class GpuMemory:
    """One card's memory in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


async def memory() -> GpuMemory:
    """The memory of the card that workers will use. Raises GpuError."""
    return await answer(_query, within_s=ANSWER_WITHIN_S)


async def answer(question: Callable[[], T], *, within_s: float) -> T:
    """Run a call that may never return, in a daemon thread that is left behind when it does not. Raises GpuError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def ask() -> None:
        try:
            result = question()
        except Exception as error:
            _tell(loop, future, error=GpuError(f"the NVIDIA driver cannot be asked ({type(error).__name__})"))
        else:
            _tell(loop, future, result=result)

    threading.Thread(target=ask, name="gpu", daemon=True).start()
    try:
        return await asyncio.wait_for(future, within_s)
    except TimeoutError:
        raise GpuError(f"the NVIDIA driver did not answer in {within_s:g} s") from None


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[T],
    *,
    result: T | None = None,
    error: GpuError | None = None,
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
        loop.call_soon_threadsafe(settle)


def _query() -> GpuMemory:
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = _handle(pynvml, os.environ)
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuMemory(str(pynvml.nvmlDeviceGetName(handle)), int(info.total), int(info.free))
    finally:
        pynvml.nvmlShutdown()


def _handle(pynvml: object, environ: Mapping[str, str]) -> object:
    """The first card that CUDA will show to the workers."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible))  # type: ignore[attr-defined]
    if not visible.startswith(("GPU-", "MIG-")):
        raise GpuError("CUDA_VISIBLE_DEVICES hides every card")
    return pynvml.nvmlDeviceGetHandleByUUID(visible)  # type: ignore[attr-defined]
