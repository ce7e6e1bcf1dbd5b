"""Which engine serves which backend: names to `module:function`, imported only inside a worker."""

from __future__ import annotations

import importlib
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from backends.engine import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.engine import Engine
    from backends.messages import LoadModel

ENGINES: Final[Mapping[str, str]] = MappingProxyType({"gguf": "backends.gguf.loading:load"})
"""Backend -> the `load` function of its engine. A new backend adds its line here."""

TEST_ENGINE: Final = "ONECARD_TEST_ENGINE"
"""Environment variable with which tests put their own `module:function` in place of every backend."""


def load(spec: LoadModel, progress: Callable[[float], None]) -> Engine:
    """Import the backend's engine and load the model with it. Raises LoadError."""
    target = os.environ.get(TEST_ENGINE) or ENGINES.get(spec.backend)
    if target is None:
        raise LoadError(f"this version has no '{spec.backend}' backend; it serves: {', '.join(sorted(ENGINES))}")
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = error.name or module_name
        raise LoadError(f"the '{spec.backend}' backend is not installed (module {missing} is missing)") from error
    engine: Engine = getattr(module, function_name)(spec, progress)
    return engine
