"""Which engine serves which backend: names to `module:function`, imported only inside a worker."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from backends.engine import Engine, LoadError
from backends.messages import LoadModel

ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {"bnb": "backends.bnb.loading:load", "gguf": "backends.gguf.loading:load"}
)
"""Backend -> the `load` function of its engine. A new backend adds its line here."""

TEST_ENGINE: Final = "ONECARD_TEST_ENGINE"
"""Environment variable with which tests put their own `module:function` in place of every backend."""

Load = Callable[[LoadModel, Callable[[float], None]], Engine]
"""Builds the engine, reporting a share of 0..1 while loading. Raises LoadError."""


def engine_of(backend: str) -> Load:
    """Import the backend's engine: the function that loads a model with it. Raises LoadError."""
    target = os.environ.get(TEST_ENGINE) or ENGINES.get(backend)
    if target is None:
        raise LoadError(f"this version has no '{backend}' backend; it serves: {', '.join(sorted(ENGINES))}")
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = error.name or module_name
        raise LoadError(f"the '{backend}' backend is not installed (module {missing} is missing)") from error
    load: Load = getattr(module, function_name)
    return load
