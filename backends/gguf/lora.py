"""The adapters of a loaded GGUF model: llama.cpp's pointers, and which of them a context computes with.

A context has one adapter for a whole batch, so an engine gives each its turn (`generation.turns`). A change makes
llama.cpp reserve its buffers anew with the next pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.engine import LoadError
from backends.files import foreign, model_files
from backends.files.adapters import AdapterError, configured, identity
from backends.generation.adapters import NO_NUMBERS, LoadedAdapters
from backends.gguf.adapters import checked
from backends.gguf.header import read

if TYPE_CHECKING:
    from pathlib import Path

    from backends.gguf.context import Context
    from backends.gguf.info import HeaderInfo
    from backends.gguf.model import Model
    from backends.messages import LoadModel


class GgufAdapters:
    """Freed with the model."""

    def __init__(self) -> None:
        self.pointers: dict[str, int] = {}
        self.identities: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    def load(self, spec: LoadModel, model: Model) -> None:
        """Read what `spec` names; one that cannot be served is refused by name, and the rest is served."""
        named = configured(spec.options)
        header = read(model.path) if named else None
        for name, path in named.items():
            assert header is not None
            try:
                seen = identity(path)  # before it is read: a change meanwhile is another one
                self.pointers[name] = _pointer(path, model, header)
                self.identities[name] = seen
            except AdapterError as problem:
                self._refuse(name, str(problem))

    def _refuse(self, name: str, why: str) -> None:
        self.pointers.pop(name, None)
        self.identities.pop(name, None)
        self.refused[name] = foreign.plain([why])[0]

    def try_all(self, context: Context) -> LoadedAdapters:
        """Compute a token with each: numbers that are none show in every logit. What is left is served."""
        context.take_adapters(self.pointers)
        for name in list(self.pointers):
            context.adapt(0, name)
            if not np.isfinite(context.first_logits()).all():
                self._refuse(name, NO_NUMBERS)
        context.adapt(0, "")
        context.use_adapter_of(0)  # where none is left, no pass looks which one is in use
        context.take_adapters(self.pointers)
        return LoadedAdapters(self.identities, self.refused)


def _pointer(path: Path, model: Model, header: HeaderInfo) -> int:
    """Raises AdapterError."""
    checked(path, header)
    try:
        model_files.check(path)
    except model_files.FileError as error:
        raise AdapterError(str(error)) from None
    try:
        return model.adapter(path)
    except LoadError as error:
        raise AdapterError(error.message) from None
