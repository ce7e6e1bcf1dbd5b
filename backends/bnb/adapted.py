"""Loads the adapters of a model folder into its model; one that cannot be served is refused by name and the rest is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from backends.bnb.adapters import checked, stored_copies
from backends.bnb.lora import LoraAdapters
from backends.engine import LoadError
from backends.files import foreign, lora_copies
from backends.files.adapters import AdapterError, configured, identity
from backends.generation.adapters import NO_NUMBERS, LoadedAdapters
from backends.machine.crash_reason import in_words
from backends.pytorch import shortage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.bnb.context import BnbContext
    from backends.bnb.header import FolderInfo
    from backends.messages import LoadModel


class AdapterBytes(NamedTuple):
    """What adapters take where the model computes."""

    total: int = 0
    within: int = 0
    """Of that, what is counted among the model's own layers."""


def load(spec: LoadModel, model: Any, info: FolderInfo, context: BnbContext) -> tuple[LoadedAdapters, AdapterBytes]:
    """The adapters that `spec` names, and their bytes; the context computes with them from now on. Raises LoadError."""
    if not configured(spec.options):
        return LoadedAdapters(), AdapterBytes()
    try:
        return _loaded(spec, model, info, context)
    except (RuntimeError, MemoryError) as error:
        if not shortage.is_shortage(error):
            raise
        told = f"no memory is left for its adapters: {shortage.told(error)}. hint: fewer adapters, or a smaller context"
        raise LoadError(told, out_of_memory=True) from error


def _loaded(spec: LoadModel, model: Any, info: FolderInfo, context: BnbContext) -> tuple[LoadedAdapters, AdapterBytes]:
    embedding = model.get_input_embeddings().weight
    adapters = LoraAdapters(model, device=embedding.device, dtype=embedding.dtype)
    identities, numbers, refused = {}, {}, {}
    for name, path in configured(spec.options).items():
        try:
            seen = identity(path)  # before it is read: a change meanwhile is another one
            found = checked(path, info)
            lora_copies.check(found, Path(spec.path), stored_copies(found, info))
            numbers[name] = adapters.add(found)
            identities[name] = seen
        except AdapterError as problem:
            refused[name] = foreign.plain([str(problem)])[0]
    if numbers:
        unsound = _unsound(context, adapters, numbers)
        refused |= {name: foreign.plain([why])[0] for name, why in unsound.items()}
        adapters.settle()
    served = {name: seen for name, seen in identities.items() if name not in refused}
    return LoadedAdapters(served, refused), AdapterBytes(adapters.n_bytes, adapters.bytes_within)


def _unsound(context: BnbContext, adapters: LoraAdapters, numbers: Mapping[str, int]) -> dict[str, str]:
    """Compute with all that are sound from now on; why the others are none, by name. Raises RuntimeError."""
    adapters.attach()
    context.take_adapters(adapters, numbers)
    found = {name: why for name in numbers if (why := _why_not(context, name)) is not None}
    if found:
        adapters.detach()
        for name in found:
            adapters.drop(numbers[name])
        adapters.attach()
        context.take_adapters(adapters, {name: number for name, number in numbers.items() if name not in found})
    return found


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
