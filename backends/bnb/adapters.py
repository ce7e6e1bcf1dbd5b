"""The adapters of a model folder: peft's folders, held against the folder's own tensors. Reads headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.bnb.sight import is_of_language
from backends.files import foreign, lora_folder
from backends.files.adapters import Adapter, AdapterError, configured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from backends.bnb.header import FolderInfo

_WEIGHT: Final = ".weight"


def described(folder: FolderInfo, options: Mapping[str, bool | int | float | str]) -> tuple[Adapter, ...]:
    """What is told of every configured adapter; one that does not fit says why. Raises HeaderError; blocks."""
    named = configured(options)
    if named and folder.gives != "text":
        raise HeaderError("it has adapters, and adapters are for models that generate text. hint: leave adapters out")
    return tuple(_described(name, path, folder) for name, path in named.items())


def checked(path: Path, folder: FolderInfo) -> lora_folder.LoraFolder:
    """An adapter that fits the folder. Raises AdapterError; blocks."""
    found = lora_folder.read(path)
    shapes = dict(_linear_layers(folder))
    lengthened = {f"{prefix}.{name}": shape for prefix in ("model", "transformer") for name, shape in shapes.items()}
    found.check_base({**lengthened, **shapes})
    seeing = (pair.layer for pair in found.pairs if folder.sight is not None and not is_of_language(pair.layer))
    if (layer := next(seeing, None)) is not None:
        raise AdapterError(f"it changes {layer[:120]}, which is no part of the language model and is not served")
    return found


def _described(name: str, path: Path, folder: FolderInfo) -> Adapter:
    try:
        found = checked(path, folder)
    except AdapterError as problem:
        return Adapter(name, path, problem=foreign.plain([str(problem)])[0])
    n_values = sum(pair.n_values for pair in found.pairs)
    n_bytes = sum(pair.a.n_bytes + pair.b.n_bytes for pair in found.pairs)
    return Adapter(name, path, found.rank, len(found.pairs), n_values, n_bytes)


def _linear_layers(folder: FolderInfo) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Names and shapes `(out, in)` of the matrices; None where bitsandbytes has packed them."""
    for tensor in folder.tensors:
        if tensor.name.endswith(_WEIGHT) and len(tensor.shape) == 2:
            yield tensor.name.removesuffix(_WEIGHT), None if folder.stored_quantised else tensor.shape
    head = folder.config.get("tie_word_embeddings") is True
    width = folder.number("hidden_size")
    if head and width and folder.n_vocab:
        yield "lm_head", (folder.n_vocab, width)
