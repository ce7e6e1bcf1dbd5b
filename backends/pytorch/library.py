"""bitsandbytes, imported without PyTorch's compiler, and what this folder takes of it.

Its plain kernels are handed to `torch.compile` when they are imported, and that imports the whole compiler: a fifth of
a worker's start. CPUs and NVIDIA's cards have kernels of their own; the plain ones, where used, run as written.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from backends.engine import LoadError

__all__ = ["Int8Params", "Linear4bit", "Linear8bitLt", "Params4bit"]


@contextmanager
def _nothing_is_compiled() -> Iterator[None]:
    """`torch.compile`, called or as a decorator, gives back what it was given."""
    library: Any = torch
    kept, library.compile = library.compile, _as_it_is
    try:
        yield
    finally:
        library.compile = kept


def _as_it_is(function: Any = None, **_options: object) -> Any:
    return (lambda given: given) if function is None else function


def _refuse_what_fetches() -> None:
    """Raises LoadError."""
    if importlib.util.find_spec("kernels") is not None:
        raise LoadError(
            "the package 'kernels' is installed, with which bitsandbytes fetches code from the network and runs it. "
            "hint: pip uninstall kernels"
        )


_refuse_what_fetches()  # on some processors it would be done by the import
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a package that we do without
with _nothing_is_compiled():
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
