"""The adapters of a model folder: peft's folders, held against the folder's own tensors. Reads headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.bnb import lora_groups
from backends.bnb.sight import is_of_language
from backends.bnb.stored import EMBEDDINGS, HEADS
from backends.files import foreign, lora_folder
from backends.files.adapters import Adapter, AdapterError, Change, configured

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from backends.bnb.header import FolderInfo
    from backends.files.tensors import StoredTensor

_WEIGHT: Final = ".weight"
_HEADS: Final = tuple(name.removesuffix(_WEIGHT) for name in HEADS)
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
    n_values = sum(pair.n_values for pair in found.pairs)
    changes = tuple(Change(pair.layer, pair.rank, pair.a.shape[1], pair.b.shape[0]) for pair in found.pairs)
    return Adapter(name, path, found.rank, len(found.pairs), n_values, n_bytes, changes)


def held_bytes(
    adapters: Sequence[Adapter], folder: FolderInfo, value_bytes: int, *, joins: Callable[[StoredTensor], bool] | None
) -> int:
    """What adapters take that are computed together, where their model computes.

    Args:
        adapters: Those that are served.
        folder: Their base.
        value_bytes: Of a number that is computed with.
        joins: Whether a layer is packed for a processor by itself; None: there is no processor that packs.
    """
    stored, names = _linear_layers(folder), {tensor.name for tensor in folder.tensors}
    known: dict[str, lora_groups.Layer] = {}
    for change in (one for adapter in adapters for one in adapter.changes):
        for layer in lora_groups.siblings(change.layer):
            own = stored.get(name := _stored_as(layer, stored))
            if own is not None and (layer == change.layer or layer not in known):
                n_outputs, n_inputs = own.shape
                if layer == change.layer:  # whatever the order in which they are stored
                    n_outputs, n_inputs = change.n_outputs, change.n_inputs
                packed = joins is not None and not layer.endswith(_HEADS) and joins(own)
                known[layer] = lora_groups.Layer(n_inputs, n_outputs, packed, f"{name}.bias" in names)
    ranks = [{change.layer: change.rank for change in adapter.changes} for adapter in adapters]
    made = lora_groups.groups(ranks, known)
    return sum(group.n_bytes(known, value_bytes, packed=joins is not None) for group in made)


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
