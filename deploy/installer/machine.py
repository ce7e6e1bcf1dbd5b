"""What this machine has, as far as an installation cares. Asks, and judges nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ASKED_WITHIN_S = 15.0
_NVCC_FOLDERS = ("usr/local/cuda/bin", "opt/cuda/bin", "usr/lib/cuda/bin")
_MANAGERS = ("apt", "dnf", "zypper", "pacman")
_DISPLAY_CLASS = "0x03"
_NVIDIA = "0x10de"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler."""

    path: str
    major: int
    """Its version; 0 where it does not tell."""
    gnu: bool = True


@dataclass(frozen=True)
class Card:
    """The first NVIDIA card."""

    name: str
    capability: tuple[int, int] | None
    """Compute capability, such as (8, 9); None where no driver tells it."""
    driver: str | None
    """Its version, such as `580.65.06`; None where none answers."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler and what lies beside it."""

    nvcc: str
    version: tuple[int, int]
    root: Path
    cublas: bool
    """cuBLAS' header and library are there."""


@dataclass(frozen=True)
class Machine:
    """The facts."""

    system: str
    processor: str
    python: tuple[int, int]
    venv: bool
    """This Python can make a venv with pip."""
    manager: str | None
    """What installs packages: apt, dnf, zypper or pacman."""
    sudo: bool
    """It takes `sudo` to do so."""
    c_compiler: bool
    """There is one for C too."""
    compiler: Compiler | None
    """The one that a build takes by itself, or that `CXX` names."""
    compilers: tuple[Compiler, ...]
    """All that are on PATH, the newest first."""
    amx: bool
    """The processor has AMX, see `amx_tiles.h`."""
    processors: int
    memory_bytes: int
    """Free for programs, swap included."""
    card: Card | None
    toolkits: tuple[Toolkit, ...]


def look(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Machine:
    """Ask this machine, whose files lie under `root`."""
    compilers = _compilers(environ)
    card = _card(environ, root)
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        python=(sys.version_info[0], sys.version_info[1]),
        venv=_has_module("ensurepip"),
        manager=next((name for name in _MANAGERS if which(name, environ)), None),
        sudo=os.geteuid() != 0,
        c_compiler=any(which(name, environ) for name in environ.get("CC", "").split()[:1] or ["cc", "gcc", "clang"]),
        compiler=_default_compiler(environ),
        compilers=compilers,
        amx="amx_tile" in text_of(root / "proc/cpuinfo"),
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory_bytes(root),
        card=card,
        toolkits=_toolkits(environ, root) if card is not None else (),
    )


def which(name: str, environ: Mapping[str, str]) -> str | None:
    """Where a program is."""
    return shutil.which(name, path=environ.get("PATH", ""))


def ask(command: list[str], environ: Mapping[str, str]) -> str | None:
    """What a program prints on both streams; None where it fails or does not come back."""
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ASKED_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def text_of(path: Path) -> str:
    """A small file's text; empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _compiler(path: str, environ: Mapping[str, str]) -> Compiler | None:
    told = ask([path, "-dumpversion"], environ)
    if told is None:
        return None
    major = re.match(r"\d+", told.strip())
    return Compiler(path, int(major[0]) if major else 0, gnu="clang" not in Path(path).name)


def _default_compiler(environ: Mapping[str, str]) -> Compiler | None:
    """As CMake looks for it: `CXX`, else c++, g++, clang++."""
    named = environ.get("CXX", "").split()
    for name in named[:1] or ["c++", "g++", "clang++"]:
        if (path := which(name, environ)) is not None and (found := _compiler(path, environ)) is not None:
            return found
    return None


def _compilers(environ: Mapping[str, str]) -> tuple[Compiler, ...]:
    paths = [which(name, environ) for name in ("g++", *(f"g++-{number}" for number in range(20, 8, -1)))]
    found = (_compiler(path, environ) for path in paths if path is not None)
    return tuple(sorted((one for one in found if one is not None), key=lambda one: -one.major))


def memory_bytes(root: Path) -> int:
    """What programs may still take: free memory and swap, or what is left of a container's limit."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE))
    free = 1024 * (int(table.get("MemAvailable", 0)) + int(table.get("SwapFree", 0)))
    group = root / "sys/fs/cgroup"
    limit, used = text_of(group / "memory.max").strip(), text_of(group / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        cache = re.search(r"^inactive_file (\d+)$", text_of(group / "memory.stat"), re.MULTILINE)
        free = min(free, int(limit) - int(used) + (int(cache[1]) if cache else 0))
    return max(0, free)


def _card(environ: Mapping[str, str], root: Path) -> Card | None:
    """As the driver tells it; else one that the bus or its device files tell of."""
    smi = which("nvidia-smi", environ) or next(
        (str(path) for path in [root / "usr/lib/wsl/lib/nvidia-smi"] if path.is_file()), None
    )
    told = None
    if smi is not None:
        fields = ["--query-gpu=compute_cap,driver_version,name", "--format=csv,noheader"]
        told = ask([smi, *fields], environ)
    match = re.match(r"\s*(\d+)\.(\d+), *([\d.]+), *(.+)", told or "")
    if match:
        return Card(match[4].strip(), (int(match[1]), int(match[2])), match[3])
    buses = (root / "sys/bus/pci/devices").glob("*")
    on_bus = any(
        text_of(bus / "vendor").strip() == _NVIDIA and text_of(bus / "class").startswith(_DISPLAY_CLASS)
        for bus in buses
    )
    nodes = any(True for pattern in ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*") for _ in root.glob(pattern))
    return Card("an NVIDIA card", None, None) if on_bus or nodes else None


def _toolkits(environ: Mapping[str, str], root: Path) -> tuple[Toolkit, ...]:
    """`CUDACXX` first, then PATH, then the usual folders; the same one once."""
    named = environ.get("CUDACXX")
    paths = [which(named, environ) if named else None, which("nvcc", environ)]
    paths += [which(f"{environ[name]}/bin/nvcc", environ) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    paths += [str(file) for folder in _NVCC_FOLDERS if (file := root / folder / "nvcc").is_file()]
    paths += sorted(map(str, (root / "usr/local").glob("cuda-*/bin/nvcc")), reverse=True)
    found: dict[Path, Toolkit] = {}
    for path in dict.fromkeys(path for path in paths if path is not None):
        toolkit = _toolkit(path, environ, root)
        if toolkit is not None:
            found.setdefault(toolkit.root, toolkit)
    return tuple(found.values())


def _toolkit(nvcc: str, environ: Mapping[str, str], root: Path) -> Toolkit | None:
    version = re.search(r"release (\d+)\.(\d+)", ask([nvcc, "--version"], environ) or "")
    if version is None:
        return None
    # On PATH there may be a script that calls the real one: where that is, it tells.
    told = re.search(r"^#\$ TOP=(.+)$", ask([nvcc, "--dryrun", "x.cu"], environ) or "", re.MULTILINE)
    top = Path(os.path.normpath(told[1].strip())) if told else Path(nvcc).resolve().parent.parent
    includes = [top / "include", *top.glob("targets/*/include"), root / "usr/include"]
    libraries = [top / "lib64", top / "lib", *top.glob("targets/*/lib"), *(root / "usr/lib").glob("*-linux-gnu")]
    cublas = any((folder / "cublas_v2.h").is_file() for folder in includes) and any(
        (folder / "libcublas.so").exists() for folder in libraries
    )
    return Toolkit(nvcc, (int(version[1]), int(version[2])), top, cublas)
