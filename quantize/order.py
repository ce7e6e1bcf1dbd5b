"""What a user asked for, as data, and where its outputs go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from backends.messages import Device
from quantize.errors import QuantizeError
from quantize.types import GGUF, HF, is_bnb

DEFAULT_CONTEXT: Final = 8192
_GENERIC: Final = {"hf", "model", "."}
_HASH: Final = re.compile(r"[0-9a-f]{40}")
_FLOAT_SUFFIX: Final = re.compile(r"[-._](f16|bf16|f32|fp16|fp32)$", re.IGNORECASE)


class Teller(Protocol):
    """Where progress goes."""

    def line(self, text: str) -> None:
        """Something happened."""
        ...

    def progress(self, what: str, done: float, total: float, *, left_s: float | None = None) -> None:
        """Something goes on."""
        ...


class Unheard:
    """Progress that is told to no one."""

    def line(self, text: str) -> None:
        """Not told."""

    def progress(self, what: str, done: float, total: float, *, left_s: float | None = None) -> None:
        """Not told."""


@dataclass(frozen=True)
class Order:
    """One run of `onecard quantize`."""

    source: Path
    out: Path
    """A folder, or the one output file."""
    types: tuple[str, ...]
    base: Path | None = None
    """The model that an adapter is for: a folder to merge it into, or a GGUF file."""
    name: str | None = None
    fit_bytes: int | None = None
    context: int = DEFAULT_CONTEXT
    device: Device = "cuda"
    """Where outputs will be served: memory is predicted for it."""
    imatrix: Path | None = None
    calibrate: Path | None = None
    """Text the importance matrix is computed from."""
    converter: Path | None = None
    output_type: str | None = None
    embedding_type: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    pure: bool = False
    requantize: bool = False
    pre: str | None = None
    """Pre-tokenizer that is taken although it differs."""
    allow_nan: bool = False
    report: bool = False
    text: Path | None = None
    """Text of the report; None is the one that comes with the package."""
    windows: int = 40
    also: tuple[Path, ...] = ()
    """Existing outputs that the report takes in."""
    dry_run: bool = False
    force: bool = False
    threads: int = 0

    @property
    def model_name(self) -> str:
        """How outputs are called."""
        return self.name or model_name(self.source)

    @property
    def folder(self) -> Path:
        """Where outputs go."""
        return self.out.parent if self.out.suffix == ".gguf" else self.out

    def target(self, type_name: str) -> Path:
        """The path of one output."""
        if self.out.suffix == ".gguf":
            if len(self.types) != 1 or type_name == HF or is_bnb(type_name):
                raise QuantizeError(
                    "--output names one GGUF file, but there is more to write. hint: name a folder", usage=True
                )
            return self.out
        if type_name == GGUF:
            return self.folder / f"{self.model_name}.gguf"
        is_folder = type_name == HF or is_bnb(type_name)
        return self.folder / f"{self.model_name}-{type_name}{'' if is_folder else '.gguf'}"

    @property
    def imatrix_target(self) -> Path:
        """Where a computed importance matrix is kept."""
        return self.imatrix or self.folder / f"{self.model_name}.imatrix.gguf"


def model_name(source: Path) -> str:
    """From the path: a Hugging Face cache snapshot is called by its repository."""
    path = source.resolve()
    if path.is_file():
        return _FLOAT_SUFFIX.sub("", re.sub(r"-00001-of-\d{5}$", "", path.stem))
    if _HASH.fullmatch(path.name) and path.parent.name == "snapshots":
        return path.parent.parent.name.split("--")[-1]
    if path.name in _GENERIC and path.parent.name:
        return model_name(path.parent) if path.parent.name in _GENERIC else path.parent.name
    return path.name
