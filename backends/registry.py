"""Which kinds of model there are, and which object knows each. A new kind adds its line to `_KNOWN`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from backends.bnb.backend import Folders
from backends.engine import Engine, LoadError
from backends.gguf.backend import Gguf
from backends.messages import LoadModel

if TYPE_CHECKING:
    from backends.backend import AnyBackend, Header
    from backends.plan import Footprint, LoadPlan

_KNOWN: Final[tuple[AnyBackend, ...]] = (Gguf(), Folders())
BACKENDS: Final[Mapping[str, AnyBackend]] = MappingProxyType({backend.name: backend for backend in _KNOWN})
"""By name."""

TEST_ENGINE: Final = "ONECARD_TEST_ENGINE"
"""Environment variable with which tests put their own `module:function` in place of every engine."""

Load = Callable[[LoadModel, Callable[[float], None]], Engine]
"""Builds the engine, reporting a share of 0..1 while loading. Raises LoadError."""


def backend_of(header: Header) -> AnyBackend:
    """The backend that has read the header."""
    return BACKENDS[header.backend]


def estimate(header: Header, plan: LoadPlan) -> Footprint:
    """The bytes a plan takes, computed from the header."""
    return backend_of(header).estimate(header, plan)


def engine_of(name: str) -> Load:
    """Import the engine of the backend of that name: the function that loads a model with it. Raises LoadError."""
    backend = BACKENDS.get(name)
    target = os.environ.get(TEST_ENGINE) or (backend.engine if backend is not None else None)
    if target is None:
        raise LoadError(f"this version has no '{name}' backend; it serves: {', '.join(sorted(BACKENDS))}")
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = error.name or module_name
        raise LoadError(f"the '{name}' backend is not installed (module {missing} is missing)") from error
    load: Load = getattr(module, function_name)
    return load
