"""bitsandbytes, imported without PyTorch's compiler, and what this folder takes of it.

Its plain kernels are handed to `torch.compile` when they are imported, and that imports the whole compiler: a fifth of
a worker's start. CPUs and NVIDIA's cards have kernels of their own; the plain ones, where used, run as written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

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


logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a package that we do without
with _nothing_is_compiled():
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
