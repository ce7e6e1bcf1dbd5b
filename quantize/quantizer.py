"""GGUF to GGUF through llama.cpp's quantiser, in a child process: what is asked, what it will make, the making."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from backends.backend import HeaderError
from backends.gguf import header
from backends.gguf.info import HeaderInfo, Tensor
from backends.gguf.tensor_types import TENSOR_TYPES
from quantize import child, imatrix
from quantize.errors import QuantizeError
from quantize.files import SPARE_BYTES, replacing
from quantize.replaced import Replaced, check_choices, check_made
from quantize.types import FILE_TYPES, FLOATS, NEED_IMATRIX, tensor_type
from quantize.words import size

Progress = Callable[[int, int], None]
"""Tensors done, tensors in all."""

_MODULE: Final = "quantize.quantizer_main"
_BYTES_PER_BLOCK: Final = {name: (block, n_bytes) for name, block, n_bytes in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of an output."""

    type_name: str
    output_type: str | None = None
    """Type of output.weight."""
    embedding_type: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    """Regular expressions over tensor names, and the type of what they match."""
    pure: bool = False
    """Every matrix in the same type."""
    imatrix: Path | None = None
    requantize: bool = False
    """Take a source that is quantised already."""
    threads: int = 0
    buffer_bytes: int = field(default=256 * 2**20)
    """Rows held at once."""


def check(recipe: Recipe, source: HeaderInfo, *, matrix_comes: bool = False) -> None:
    """Refuse what would fail or be noise. Raises QuantizeError."""
    if recipe.type_name in NEED_IMATRIX and recipe.imatrix is None and not matrix_comes:
        raise QuantizeError(
            f"{recipe.type_name} is noise without an importance matrix. hint: --calibrate TEXT computes one, "
            "--imatrix FILE takes one that is there",
            usage=True,
        )
    quantised = sorted({tensor.type_name for tensor in source.tensors} - set(FLOATS))
    if quantised and not recipe.requantize:
        raise QuantizeError(
            f"the source is quantised already ({', '.join(quantised)}); quantising it again loses more than quantising "
            "the original. hint: --requantize does it all the same",
            usage=True,
        )
    for pattern, type_name in recipe.overrides:
        tensor_type(type_name)
        try:
            matches = any(re.search(pattern, tensor.name) for tensor in source.tensors)
        except re.error as error:
            raise QuantizeError(f"the pattern {pattern!r} is no regular expression: {error}", usage=True) from None
        if not matches:
            raise QuantizeError(f"the pattern {pattern!r} matches no tensor of the model", usage=True)
    check_choices(recipe, source)
    if recipe.imatrix is not None:
        imatrix.check_fits(imatrix.read(recipe.imatrix), source, recipe.imatrix.name)


def read_header(path: Path) -> HeaderInfo:
    """The checked header of a GGUF source. Raises QuantizeError."""
    try:
        return header.read(path)
    except HeaderError as error:
        raise QuantizeError(f"{path.name}: {error}") from None


@dataclass(frozen=True)
class Outcome:
    """What an output will be."""

    header: HeaderInfo
    replaced: tuple[Replaced, ...] = ()


def outcome(source: Path, recipe: Recipe, info: HeaderInfo) -> Outcome:
    """The header the output will have, from llama.cpp's dry run: exact types, no data read. Raises QuantizeError."""
    if recipe.type_name in FLOATS and _is_all(info, recipe.type_name):
        return Outcome(info)
    types: dict[str, str] = {}
    replaced: list[Replaced] = []

    def note(message: child.Message) -> None:
        if "tensor" in message:
            types[message["tensor"]] = message["type"]
        elif "replaced" in message:
            replaced.append(Replaced(message["replaced"], message["wanted"], message["made"]))

    child.run(_MODULE, _request(source, Path("/dev/null"), recipe, dry_run=True), note)
    tensors = tuple(_retyped(tensor, types.get(tensor.name, tensor.type_name)) for tensor in info.tensors)
    grown = sum(tensor.n_bytes for tensor in tensors) - info.weight_bytes
    made = replace(info, tensors=tensors, file_bytes=info.file_bytes + grown)
    check_made(recipe, info, made)
    return Outcome(made, tuple(replaced))


def quantize(
    source: Path, target: Path, recipe: Recipe, *, progress: Progress | None = None, expected_bytes: int
) -> HeaderInfo:
    """Write `target` whole or not at all. Raises QuantizeError; the source's header has been checked before."""
    with replacing(target) as temporary:

        def note(message: child.Message) -> None:
            if progress is not None and "done" in message:
                progress(message["done"], message["total"])

        try:
            child.run(_MODULE, _request(source, temporary, recipe, dry_run=False), note)
        except QuantizeError as error:
            if shutil.disk_usage(target.parent).free < SPARE_BYTES or "iostream" in error.message:
                raise QuantizeError(
                    f"the disk is full: {target.name} needs {size(expected_bytes)}; it was not written, "
                    "what was there is as it was"
                ) from None
            raise
        return read_header(temporary)


def _retyped(tensor: Tensor, type_name: str) -> Tensor:
    block, n_bytes = _BYTES_PER_BLOCK[type_name]
    n_elements = 1
    for length in tensor.shape:
        n_elements *= length
    return replace(tensor, type_name=type_name, n_bytes=n_elements // block * n_bytes)


def _is_all(info: HeaderInfo, type_name: str) -> bool:
    return all(tensor.type_name == type_name for tensor in info.tensors if len(tensor.shape) > 1)


def _request(source: Path, target: Path, recipe: Recipe, *, dry_run: bool) -> child.Message:
    return asdict(recipe) | {
        "source": str(source),
        "target": str(target),
        "file_type": FILE_TYPES[recipe.type_name],
        "imatrix": str(recipe.imatrix) if recipe.imatrix else None,
        "overrides": [[pattern, tensor_type(name)] for pattern, name in recipe.overrides],
        "output_type": tensor_type(recipe.output_type) if recipe.output_type else None,
        "embedding_type": tensor_type(recipe.embedding_type) if recipe.embedding_type else None,
        "dry_run": dry_run,
    }
