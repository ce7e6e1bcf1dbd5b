"""Loads the adapters of a model folder into its model; one that cannot be served is refused by name and the rest is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.bnb.adapters import checked
from backends.bnb.lora import LoraAdapters
from backends.engine import LoadError
from backends.files import foreign
from backends.files.adapters import AdapterError, configured, identity
from backends.generation.adapters import NO_NUMBERS, LoadedAdapters
from backends.machine.crash_reason import in_words
from backends.pytorch import shortage

if TYPE_CHECKING:
    from backends.bnb.context import BnbContext
    from backends.bnb.header import FolderInfo
    from backends.messages import LoadModel


def load(spec: LoadModel, model: Any, info: FolderInfo, context: BnbContext) -> tuple[LoadedAdapters, int]:
    """The adapters that `spec` names, and their bytes; the context computes with them from now on. Raises LoadError."""
    if not configured(spec.options):
        return LoadedAdapters(), 0
    try:
        return _loaded(spec, model, info, context)
    except (RuntimeError, MemoryError) as error:
        if not shortage.is_shortage(error):
            raise
        told = f"no memory is left for its adapters: {shortage.told(error)}. hint: fewer adapters, or a smaller context"
        raise LoadError(told, out_of_memory=True) from error


def _loaded(spec: LoadModel, model: Any, info: FolderInfo, context: BnbContext) -> tuple[LoadedAdapters, int]:
    embedding = model.get_input_embeddings().weight
    adapters = LoraAdapters(model, device=embedding.device, dtype=embedding.dtype)
    identities, numbers, refused = {}, {}, {}
    for name, path in configured(spec.options).items():
        try:
            seen = identity(path)  # before it is read: a change meanwhile is another one
            numbers[name] = adapters.add(checked(path, info))
            identities[name] = seen
        except AdapterError as problem:
            refused[name] = foreign.plain([str(problem)])[0]
    if numbers:
        adapters.attach()
        context.take_adapters(adapters, numbers)
    for name in numbers:
        if (why := _why_not(context, name)) is not None:
            del identities[name]
            refused[name] = foreign.plain([why])[0]
    return LoadedAdapters(identities, refused), adapters.n_bytes


def _why_not(context: BnbContext, name: str) -> str | None:
    """Why a pass with an adapter comes to nothing; None where it does not. Raises RuntimeError for want of memory."""
    context.adapt(0, name)
    try:
        context.warm_up(2)
        return None if np.isfinite(context.logits(1)).all() else NO_NUMBERS
    except RuntimeError as error:
        if shortage.is_shortage(error):
            raise
        return f"the model does not compute with it: {in_words(error)}"
    finally:
        context.adapt(0, "")
