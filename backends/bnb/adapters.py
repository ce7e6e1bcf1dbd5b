"""The adapters of a model folder: peft's folders, held against the folder's own tensors. Reads headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.bnb import lora_groups
from backends.bnb.sight import is_of_language
from backends.bnb.stored import EMBEDDINGS
from backends.files import foreign, lora_folder
from backends.files.adapters import Adapter, AdapterError, configured

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from backends.bnb.header import FolderInfo
    from backends.files.tensors import StoredTensor

_WEIGHT: Final = ".weight"
_PREFIXES: Final = ("model", "transformer")


def described(folder: FolderInfo, options: Mapping[str, bool | int | float | str]) -> tuple[Adapter, ...]:
    """What is told of every configured adapter; one that does not fit says why. Raises HeaderError; blocks."""
    named = configured(options)
    if named and folder.gives != "text":
        raise HeaderError("it has adapters, and adapters are for models that generate text. hint: leave adapters out")
    return tuple(_described(name, path, folder) for name, path in named.items())


def checked(path: Path, folder: FolderInfo) -> lora_folder.LoraFolder:
    """An adapter that fits the folder. Raises AdapterError; blocks."""
    found = lora_folder.read(path)
    shapes = {name: tensor.shape for name, tensor in _linear_layers(folder).items()}
    known = {layer: shapes.get(_stored_as(layer, shapes)) for layer in (pair.layer for pair in found.pairs)}
    packed = folder.stored_quantised
    found.check_base({layer: None if packed else shape for layer, shape in known.items() if shape is not None})
    seeing = (pair.layer for pair in found.pairs if folder.sight is not None and not is_of_language(pair.layer))
    if (layer := next(seeing, None)) is not None:
        raise AdapterError(f"it changes {layer[:120]}, which is no part of the language model and is not served")
    found.check_copies(stored_copies(found, folder))
    return found


def stored_copies(found: lora_folder.LoraFolder, folder: FolderInfo) -> dict[str, StoredTensor]:
    """The base's own of the layers that an adapter carries copies of, by the adapter's names; what it has not is left
    out.
    """
    layers = _linear_layers(folder)
    return {layer: own for layer in found.copies if (own := layers.get(_stored_as(layer, layers))) is not None}


def stored_matrix(layer: str, folder: FolderInfo) -> StoredTensor:
    """The matrix of a linear layer as the folder stores it; of a head that is tied, the embedding.

    `layer` is one that `checked` has let pass.
    """
    layers = _linear_layers(folder)
    return layers[_stored_as(layer, layers)]


def _described(name: str, path: Path, folder: FolderInfo) -> Adapter:
    try:
        found = checked(path, folder)
    except AdapterError as problem:
        return Adapter(name, path, problem=foreign.plain([str(problem)])[0])
    n_bytes = sum(pair.a.n_bytes + pair.b.n_bytes for pair in found.pairs)
    shapes = {layer: stored.shape for layer, stored in _linear_layers(folder).items()}
    n_values = sum(_n_computed(pair, shapes) for pair in found.pairs)
    return Adapter(name, path, found.rank, len(found.pairs), n_values, n_bytes)


def _n_computed(pair: lora_folder.LoraPair, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of one pair, its `B` with zeros for the outputs of all layers of its input, where those may be one product."""
    stored = [_stored_as(layer, shapes) for layer in lora_groups.siblings(pair.layer)]
    n_outputs = max(pair.b.shape[0], sum(shapes[layer][0] for layer in stored if layer in shapes))
    n_inputs = pair.a.shape[1]
    together = lora_groups.may_join(pair.rank, n_inputs) or pair.rank * n_outputs <= lora_groups.AT_ONCE
    return pair.rank * (n_inputs + n_outputs) if together else pair.n_values


def _stored_as(layer: str, known: Collection[str]) -> str:
    """The name that a layer has in the files: older folders leave the model's own prefix out."""
    shorter = (layer.removeprefix(f"{prefix}.") for prefix in _PREFIXES)
    return next((name for name in (layer, *shorter) if name in known), layer)


def _linear_layers(folder: FolderInfo) -> dict[str, StoredTensor]:
    """The matrices by the names of their layers, and what a head without one of its own is computed with."""
    matrices = [tensor for tensor in folder.tensors if tensor.name.endswith(_WEIGHT) and len(tensor.shape) == 2]
    embeddings = [tensor for tensor in matrices if tensor.name.endswith(EMBEDDINGS)]
    heads = {"lm_head": embeddings[0]} if len(embeddings) == 1 else {}
    return {**heads, **{tensor.name.removesuffix(_WEIGHT): tensor for tensor in matrices}}
