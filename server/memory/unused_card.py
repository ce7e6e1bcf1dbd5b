"""Whether a graphics card is there and not used, and why: a pure decision over what each probe said."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NODES: Final = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*", "/usr/lib/wsl/lib/libcuda.so*")
"""What a card and its driver leave in the file system; the last in Windows' Linux."""


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


def warnings(said: Probes) -> list[str]:
    """A sentence for each way in which a card is there and unused. The operator's own choice is none."""
    if said.asked == "cpu" or said.hidden:
        return []
    found = []
    if said.device == "cpu":
        if said.llama and said.driver_error is not None:
            found.append(
                f"llama.cpp is built for CUDA, but {said.driver_error}: models run on the CPU. "
                "hint: does `nvidia-smi` show the card? A container needs `--gpus all`"
            )
        elif said.card and said.llama is False:
            found.append(
                "a graphics card is there, but llama.cpp is built for the CPU: models run on the CPU. "
                "hint: install the CUDA toolkit, then build llama-cpp-python with CUDA (docs/deployment.md)"
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
        torch=built_for_cuda("torch", "lib/*c10_cuda*"),
        driver_error=driver_error,
    )


def engine_has_cuda() -> bool | None:
    """Whether the installed llama.cpp is built for CUDA; None where it is not installed."""
    return built_for_cuda("llama_cpp", "lib/*ggml-cuda*")


def built_for_cuda(package: str, library: str) -> bool | None:
    """Whether an installed package has its library for CUDA; None where it is not installed. Imports nothing."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    return any(next(folder.glob(library), None) is not None for folder in folders)
