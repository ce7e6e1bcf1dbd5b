"""A machine made of small executables and files, and an installation into an empty folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import ROOT

sys.path.insert(0, str(ROOT / "deploy"))  # where `python3 deploy/install.py` finds them too

from installer.machine import Card, Compiler, Machine, look

GCC = Compiler("/usr/bin/g++", 12)
ADA = Card("NVIDIA GeForce RTX 4070 Ti", (8, 9), "580.65.06")
LAPTOP = Machine(
    system="Linux",
    processor="x86_64",
    python=(3, 12),
    venv=True,
    manager="apt",
    sudo=True,
    c_compiler=True,
    compiler=GCC,
    compilers=(GCC,),
    amx=False,
    processors=8,
    memory_bytes=16 * 2**30,
    card=None,
    toolkits=(),
)
"""A machine without a card and with nothing amiss."""


def machine(**facts: Any) -> Machine:
    return replace(LAPTOP, **facts)


@dataclass
class Made:
    """A machine made of files."""

    root: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": str(self.root / "bin"), "HOME": str(self.root / "home")}

    def program(self, name: str, text: str) -> Path:
        """A program on its PATH, or elsewhere where the name has folders."""
        file = self.root / (name if "/" in name else f"bin/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return file

    def file(self, name: str, text: str = "") -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def nvcc(self, name: str, version: str, *, cublas: bool = True, top: str = "") -> None:
        """A toolkit at `name`/bin/nvcc."""
        shown = f'case "$1" in --version) echo "Cuda compilation tools, release {version}, V{version}.88";;'
        dry = f'*) echo "#\\$ TOP={top}";;' if top else "*) exit 1;;"
        self.program(f"{name}/bin/nvcc", f"{shown} {dry} esac")
        if cublas:
            self.file(f"{name}/include/cublas_v2.h")
            self.file(f"{name}/lib64/libcublas.so")

    def look(self, **environ: str) -> Machine:
        return look({**self.environ, **environ}, self.root)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "made" / "bin").mkdir(parents=True)
    return Made(tmp_path / "made")
