"""The graphics card: its memory as NVIDIA's library tells it, and why one that is there may be unused.

The library is imported when asked, from a thread that may hang without hurting anyone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from backends.machine.card import HiddenError, first

ANSWER_WITHIN_S: Final = 5.0

_NODES: Final = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*", "/usr/lib/wsl/lib/libcuda.so*")
"""What a card and its driver leave in the file system; the last in Windows' Linux."""

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


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of the card."""

    pid: int
    name: str
    n_bytes: int | None
    """None where the driver does not tell."""


@dataclass(frozen=True)
class Card:
    """The card, its driver, and who holds its memory."""

    memory: GpuMemory
    driver: str
    holders: tuple[Holder, ...] | None
    """None where the driver tells of no process."""


async def card() -> Card:
    """Everything that is told of the card that workers will use. Raises GpuError."""
    return await answer(_card, within_s=ANSWER_WITHIN_S)


async def held_by(pids: Sequence[int]) -> int | None:
    """Bytes of the card that these processes hold; None where the driver does not tell of any, as in a container."""
    try:
        found = {holder.pid: holder.n_bytes for holder in (await card()).holders or () if holder.pid in pids}
    except GpuError:
        return None
    known = [n_bytes for n_bytes in found.values() if n_bytes is not None]
    return sum(known) if known else None


async def answer(question: Callable[[], T], *, within_s: float) -> T:
    """Run a call that may never return, in a daemon thread that is left behind when it does not. Raises GpuError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def ask() -> None:
        try:
            result = question()
        except HiddenError as error:
            _tell(loop, future, error=GpuError(str(error)))
        except Exception as error:
            _tell(loop, future, error=GpuError(f"the NVIDIA driver cannot be asked ({type(error).__name__})"))
        else:
            _tell(loop, future, result=result)

    threading.Thread(target=ask, name="gpu", daemon=True).start()
    try:
        async with asyncio.timeout(within_s):  # wait_for forgets a cancellation that comes with the answer
            return await future
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
        handle = first(pynvml, os.environ)
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuMemory(str(pynvml.nvmlDeviceGetName(handle)), int(info.total), int(info.free))
    finally:
        pynvml.nvmlShutdown()


def _card() -> Card:
    import pynvml

    memory = _query()
    pynvml.nvmlInit()
    try:
        handle = first(pynvml, os.environ)
        found: dict[int, int | None] = {}
        told = False
        for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
            with contextlib.suppress(pynvml.NVMLError):  # under WSL and in a part of a card no process is told
                found |= {int(one.pid): one.usedGpuMemory for one in ask(handle)}
                told = True
        holders = [Holder(pid, _process_name(pid), None if n is None else int(n)) for pid, n in found.items()]
        return Card(memory, str(pynvml.nvmlSystemGetDriverVersion()), tuple(holders) if told else None)
    finally:
        pynvml.nvmlShutdown()


def _process_name(pid: int) -> str:
    """As the kernel has it; of another user's container there may be none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() or "?"
    except OSError:
        return "?"


@dataclass(frozen=True)
class Probes:
    """What each of them said."""

    asked: str
    """`device` of the configuration."""
    device: str
    """Where models run."""
    card: bool
    """A card's device nodes are there, or its driver's."""
    hidden: bool
    """CUDA_VISIBLE_DEVICES hides every card."""
    llama: bool | None
    """Whether llama.cpp is built for CUDA; None: it is not installed."""
    torch: bool | None
    """The same of PyTorch."""
    driver_error: str | None = None
    """Why the driver told no memory; None where it did or was not asked."""
    order: str = ""
    """What CUDA_DEVICE_ORDER says."""


def unused_warnings(said: Probes) -> list[str]:
    """A sentence for each way in which a card is there and unused, or another one than is meant.

    The operator's own choice not to use it is none.
    """
    if said.asked == "cpu" or said.hidden:
        return []
    found = []
    if said.device == "cuda" and said.order not in ("", "PCI_BUS_ID"):
        found.append(
            f"CUDA_DEVICE_ORDER={said.order} has no effect: cards are counted as nvidia-smi counts them, by bus. "
            "hint: name the card by its UUID in CUDA_VISIBLE_DEVICES (`nvidia-smi -L`)"
        )
    if said.device == "cpu":
        if said.llama and said.driver_error is not None:
            found.append(
                f"llama.cpp is built for CUDA, but {said.driver_error}: models run on the CPU. "
                "hint: does `nvidia-smi` show the card? A container needs `--gpus all`"
            )
        elif said.card and said.llama is False:
            found.append(
                "a graphics card is there, but llama.cpp is built for the CPU: models run on the CPU. "
                "hint: `make serve` builds for the card, or says why it cannot (docs/deployment.md)"
            )
        elif said.card and said.llama is None:
            found.append(
                "a graphics card is there, but llama.cpp is not installed, whose build decides: models run on the CPU. "
                "hint: device = 'cuda'"
            )
    if (said.card or said.device == "cuda") and said.torch is False:
        found.append(
            "a graphics card is there, but PyTorch is built for the CPU: model folders cannot use the card. "
            "hint: install PyTorch for CUDA, or serve GGUF files"
        )
    return found


def probe(asked: str, device: str, *, driver_error: str | None) -> Probes:
    """Ask this machine. Imports no library and blocks no longer than a look into a few folders."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return Probes(
        asked,
        device,
        card=any(next(Path("/").glob(pattern[1:]), None) is not None for pattern in _NODES),
        hidden=visible is not None and not visible.split(",")[0].strip().startswith(("GPU-", "MIG-", *"0123456789")),
        llama=engine_has_cuda(),
        torch=torch_has_cuda(),
        driver_error=driver_error,
        order=os.environ.get("CUDA_DEVICE_ORDER", ""),
    )


def engine_has_cuda() -> bool | None:
    """Whether the installed llama.cpp is built for CUDA; None where it is not installed."""
    return built_for_cuda("llama_cpp", "lib/*ggml-cuda*")


def torch_has_cuda() -> bool | None:
    """The same of PyTorch."""
    return built_for_cuda("torch", "lib/*c10_cuda*")


def built_for_cuda(package: str, library: str) -> bool | None:
    """Whether an installed package has its library for CUDA; None where it is not installed. Imports nothing."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    return any(next(folder.glob(library), None) is not None for folder in folders)
