"""Which llama.cpp is compiled for a machine, and why not the one for its card. Pure."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from installer.machine import Card, Compiler, Machine, Toolkit
from installer.words import InstallError, system_install

AMX_TILES = Path(__file__).resolve().parent.parent / "amx_tiles.h"
INDEX_CUDA = (13, 0)
"""The CUDA of `INDEX_TOOLKIT`, which is that of the pinned PyTorch."""
INDEX_TOOLKIT = "13.0.2"
"""NVIDIA's package `cuda-toolkit`, which names versions of its parts that belong together."""
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""By the toolkit's major version: the driver that runs what it compiles."""
NEEDS_CUDA = (((12, 1), (12, 9)), ((12, 0), (12, 8)), ((10, 3), (12, 9)), ((10, 0), (12, 8)), ((8, 9), (11, 8)))
"""Capabilities, and the first toolkit that knows them, the newest card first; older cards are known to all."""
LEAST_CUDA = (11, 4)
LEAST_CAPABILITY = {11: (5, 0), 12: (5, 0), 13: (7, 5)}
"""The oldest cards that a toolkit still compiles for."""
NEWEST_GCC = (((13, 0), 15), ((12, 8), 14), ((12, 4), 13), ((12, 0), 12), ((11, 4), 11))
"""The newest g++ that nvcc takes, by the toolkit's version and above."""
BUILDS = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Build:
    """How llama.cpp is compiled."""

    name: str
    """`cpu`, `cuda-sm89`, `cuda13-sm89` with the index's toolkit, or `custom-<hash>` for the user's own CMAKE_ARGS.

    With `-amx` behind it see `amx_tiles.h`.
    """
    cmake_args: str | None = None
    cxx_flags: str = ""
    cuda: bool = False
    toolkit_from_index: bool = False
    note: str = ""
    """Why it is not the one for the card that is there."""

    @property
    def plain(self) -> bool:
        """Compiled as it comes, so that pip's own cache may hold it."""
        return self.cmake_args is None and not self.cxx_flags

    @property
    def minutes(self) -> int:
        """How long it takes to compile on two cores."""
        return 16 if self.cuda else 7


def choose(machine: Machine, asked: str, environ: Mapping[str, str]) -> Build:
    """What is compiled for this machine's card and processor. Raises InstallError where `cuda` was asked in vain."""
    build = _for_card(machine, asked, environ)
    if asked == "cuda" and not build.cuda and not environ.get("CMAKE_ARGS"):
        raise InstallError(build.note or "there is no NVIDIA card. hint: BUILD=auto takes what fits this machine")
    if not machine.amx:
        return build
    return replace(build, name=f"{build.name}-amx", cxx_flags=f"-include {shlex.quote(str(AMX_TILES))}")


def described(machine: Machine, build: Build) -> str:
    """What was found and what is built, in one line."""
    card = machine.card
    if card is None:
        return f"no NVIDIA card; llama.cpp for {build.name}"
    told = card.name
    if card.capability is not None:
        told += f" (capability {_dotted(card.capability)}), driver {card.driver}"
    if build.toolkit_from_index:
        toolkit = f"CUDA {_dotted(INDEX_CUDA)} from the package index"
    elif machine.toolkits:
        toolkit = f"CUDA {_dotted(machine.toolkits[0].version)} in {machine.toolkits[0].root}"
    else:
        toolkit = "no CUDA toolkit"
    return f"{told}; {toolkit}; llama.cpp for {build.name}"


def _for_card(machine: Machine, asked: str, environ: Mapping[str, str]) -> Build:
    if args := environ.get("CMAKE_ARGS"):
        cuda = "GGML_CUDA=on" in args.replace("=ON", "=on").replace("=1", "=on")
        return Build(f"custom-{hashlib.sha256(args.encode()).hexdigest()[:8]}", args, cuda=cuda)
    card = machine.card
    if card is None or asked == "cpu":
        return Build("cpu")
    if card.capability is None or card.driver is None:
        install = system_install(machine, "driver")
        return Build(
            "cpu",
            note=f"there is {card.name}, but no driver that answers: llama.cpp is built for the CPU. "
            f"hint: `{install}`, or in a container `--gpus all`, until `nvidia-smi` shows it; then the same again",
        )
    refused = []
    for toolkit in machine.toolkits:
        compiler = host_compiler(toolkit.version, machine)
        why = _unfit(card, toolkit, compiler, sure=not environ.get("PIP_NO_INDEX"))
        if why is None and compiler is not None:
            return _with_toolkit(card, toolkit, compiler, machine)
        refused.append(why or "")
    why = _unfit_index(card, machine, environ)
    if why is None:
        sm = "".join(map(str, card.capability))
        return Build(f"cuda{INDEX_CUDA[0]}-sm{sm}", "", cuda=True, toolkit_from_index=True)
    return Build(
        "cpu",
        note=f"{card.name}: {(refused or [why])[0]}: llama.cpp is built for the CPU. hint: {_remedy(card, machine)}",
    )


def index_args(build: Build, root: Path, machine: Machine) -> str:
    """What CMake is told to compile with the index's toolkit, whose parts lie under `root`."""
    sm = build.name.partition("-sm")[2].partition("-")[0]
    compiler = host_compiler(INDEX_CUDA, machine)
    return (
        _cuda_args(sm, root / "bin" / "nvcc", compiler, machine) + f" -DCUDAToolkit_ROOT={root} -DGGML_CUDA_NO_VMM=ON"
    )


def host_compiler(version: tuple[int, int], machine: Machine) -> Compiler | None:
    """The newest compiler that an nvcc takes: the one that is used anyway if it can be."""
    newest = next((most for least, most in NEWEST_GCC if version >= least), 0)
    candidates = ([machine.compiler] if machine.compiler is not None else []) + list(machine.compilers)
    return next((one for one in candidates if one.gnu and 0 < one.major <= newest), None)


def _with_toolkit(card: Card, toolkit: Toolkit, compiler: Compiler, machine: Machine) -> Build:
    assert card.capability is not None
    sm = "".join(map(str, card.capability))
    inside = toolkit.root / "bin" / "nvcc"
    nvcc = inside if inside.is_file() else Path(toolkit.nvcc)
    return Build(f"cuda-sm{sm}", _cuda_args(sm, nvcc, compiler, machine), cuda=True)


def _cuda_args(sm: str, nvcc: Path, compiler: Compiler | None, machine: Machine) -> str:
    args = f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={sm} -DCMAKE_CUDA_COMPILER={nvcc} -DGGML_CUDA_NCCL=OFF"
    if compiler is not None and (machine.compiler is None or compiler.path != machine.compiler.path):
        args += f" -DCMAKE_CUDA_HOST_COMPILER={compiler.path}"
    return args


def _unfit(card: Card, toolkit: Toolkit, compiler: Compiler | None, *, sure: bool) -> str | None:
    """Why a toolkit compiles nothing for the card; None where it does. `sure`: there is another one to take."""
    here = f"CUDA {_dotted(toolkit.version)} in {toolkit.root}"
    if not toolkit.cublas and sure:
        return f"{here} is without cuBLAS"
    if (why := _unfit_version(card, toolkit.version)) is not None:
        return f"{here} {why}"
    if compiler is None:
        return f"{here} takes no compiler that is here"
    return None


def _unfit_version(card: Card, version: tuple[int, int]) -> str | None:
    assert card.capability is not None
    assert card.driver is not None
    if version < LEAST_CUDA:
        return f"is older than {_dotted(LEAST_CUDA)}"
    needs = next((cuda for capability, cuda in NEEDS_CUDA if card.capability >= capability), LEAST_CUDA)
    if version < needs:
        return f"is older than {_dotted(needs)}, which this card needs"
    if card.capability < LEAST_CAPABILITY.get(version[0], (7, 5)):
        return "no longer compiles for this card"
    driver = int(card.driver.partition(".")[0])
    if driver < LEAST_DRIVER.get(version[0], 580):
        return f"needs a newer driver than {card.driver}"
    return None


def _unfit_index(card: Card, machine: Machine, environ: Mapping[str, str]) -> str | None:
    """Why the index's toolkit compiles nothing for the card; None where it does."""
    if environ.get("PIP_NO_INDEX"):
        return "there is no CUDA toolkit, and no package index to take one from"
    if machine.system != "Linux" or machine.processor not in ("x86_64", "aarch64"):
        return f"there is no CUDA toolkit, and the package index has none for {machine.system} on {machine.processor}"
    if (why := _unfit_version(card, INDEX_CUDA)) is not None:
        return f"there is no CUDA toolkit, and that of the package index {why}"
    if machine.compiler is not None and host_compiler(INDEX_CUDA, machine) is None:
        return "there is no g++ that nvcc takes"
    return None


def _remedy(card: Card, machine: Machine) -> str:
    """What brings the card into use, where neither a toolkit of the machine nor the index's is fit."""
    assert card.capability is not None
    assert card.driver is not None
    if card.capability < LEAST_CAPABILITY[INDEX_CUDA[0]]:
        return "install CUDA 12 (developer.nvidia.com/cuda-toolkit-archive), then the same again"
    if int(card.driver.partition(".")[0]) < (least := LEAST_DRIVER[INDEX_CUDA[0]]):
        return f"update the driver to {least} or newer (`{system_install(machine, 'driver')}`), then the same again"
    if host_compiler(INDEX_CUDA, machine) is None:
        newest = NEWEST_GCC[0][1]
        return f"`{system_install(machine, 'g++', version=newest)}`, then the same again"
    return f"`{system_install(machine, 'toolkit')}`, then the same again"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
