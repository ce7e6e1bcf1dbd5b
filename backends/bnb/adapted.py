"""Loads the adapters of a model folder into its model; one that cannot be served is refused by name and the rest is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.bnb.adapters import checked
from backends.bnb.lora import LoraAdapters
from backends.files import foreign
from backends.files.adapters import AdapterError, configured, identity
from backends.generation.adapters import LoadedAdapters

if TYPE_CHECKING:
    from backends.bnb.context import BnbContext
    from backends.bnb.header import FolderInfo
    from backends.messages import LoadModel


def load(spec: LoadModel, model: Any, info: FolderInfo, context: BnbContext) -> tuple[LoadedAdapters, int]:
    """The adapters that `spec` names, and their bytes; the context computes with them from now on."""
    named = configured(spec.options)
    if not named:
        return LoadedAdapters(), 0
    embedding = model.get_input_embeddings().weight
    adapters = LoraAdapters(model, device=embedding.device, dtype=embedding.dtype)
    identities, refused = {}, {}
    for name, path in named.items():
        try:
            seen = identity(path)  # before it is read: a change meanwhile is another one
            adapters.add(checked(path, info))
        except AdapterError as problem:
            refused[name] = foreign.plain([str(problem)])[0]
            continue
        identities[name] = seen
    if identities:
        adapters.attach()
        context.take_adapters(adapters, {name: number for number, name in enumerate(identities)})
    return LoadedAdapters(identities, refused), adapters.n_bytes
