"""CUDA's compiler and libraries from the package index, for a machine with a card and without a toolkit.

NVIDIA's wheels hold the toolkit, but not the names that a linker looks for. What it compiles finds its libraries
through links beside llama.cpp's own, so that no environment variable has to be set when it runs.
"""

from __future__ import annotations

from pathlib import Path

from installer.build import INDEX_CUDA, INDEX_TOOLKIT

LIBRARIES = ("cudart", "cublas", "cublasLt")
TO_COMPILE = f"cuda-toolkit[nvcc,nvvm,crt,cccl,cublas,cudart]=={INDEX_TOOLKIT}"
TO_RUN = f"cuda-toolkit[cublas,cudart]=={INDEX_TOOLKIT}"


def root_in(site: Path) -> Path:
    """Where the wheels put the toolkit, below `site-packages`."""
    return site / "nvidia" / f"cu{INDEX_CUDA[0]}"


def link_to_compile(root: Path) -> None:
    """Give the libraries the names that CMake and the linker look for."""
    for name in LIBRARIES:
        _link(root / "lib" / f"lib{name}.so", f"lib{name}.so.{INDEX_CUDA[0]}")
    _link(root / "lib64", "lib")


def link_to_run(site: Path) -> None:
    """Put the libraries beside llama.cpp's, which look for others in their own folder."""
    for name in LIBRARIES:
        file = f"lib{name}.so.{INDEX_CUDA[0]}"
        _link(site / "llama_cpp" / "lib" / file, f"../../nvidia/cu{INDEX_CUDA[0]}/lib/{file}")


def _link(path: Path, target: str) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        return
    path.symlink_to(target)
