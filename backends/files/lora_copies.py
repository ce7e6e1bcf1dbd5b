"""Copies of its base's layers that an adapter's file carries: peft saves them with a head that is changed.

A copy that is one is left out. One that has other numbers has been trained itself, and such an adapter is no LoRA.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.files.adapters import AdapterError
from backends.files.lora_folder import FLOATS, WITHOUT_COPIES
from backends.files.lora_values import read_floats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.files.lora_folder import LoraFolder
    from backends.files.tensors import StoredTensor

_ROUNDED: Final = 2.0**-8
"""Two copies of a number, each rounded to 16 bits, are no farther apart than this share of it."""
_SMALLEST: Final = 2.0**-24
"""Of 16 bits' numbers above zero."""
_PIECE_VALUES: Final = 2**22


def check(adapter: LoraFolder, base: Path, own: Mapping[str, StoredTensor]) -> None:
    """Hold an adapter's copies against the base's layers `own`, which lie in the folder `base`.

    Raises AdapterError; blocks on the disk.
    """
    for layer, copy in adapter.copies.items():
        _check_numbers(adapter.path, copy, base, own[layer])


def _check_numbers(adapter: Path, copy: StoredTensor, base: Path, own: StoredTensor) -> None:
    """Raises AdapterError where the copy is none; blocks on the disk, and holds a few MiB of either."""
    if own.dtype not in FLOATS:
        raise AdapterError(
            f"it carries {copy.name[:120]}, which cannot be held against {own.dtype}, as its base is stored. "
            f"{WITHOUT_COPIES}"
        )
    for mine, its in zip(_pieces(adapter, copy), _pieces(base, own), strict=True):
        if (np.abs(mine - its) > _ROUNDED * np.abs(its) + _SMALLEST).any():
            raise AdapterError(
                f"it carries {copy.name[:120]} with other numbers than its base has. hint: a layer that was trained in "
                "full is no part of a LoRA: merge it with peft's merge_and_unload, and serve the merged folder"
            )


def _pieces(folder: Path, stored: StoredTensor) -> Iterator[NDArray[np.float32]]:
    n_rows, width = stored.shape[0], stored.n_elements // max(1, stored.shape[0])
    step = max(1, _PIECE_VALUES // max(1, width))
    row_bytes = stored.n_bytes // max(1, n_rows)
    for first in range(0, n_rows, step):
        count = min(step, n_rows - first)
        yield read_floats(
            folder,
            replace(
                stored,
                shape=(count, *stored.shape[1:]),
                start=stored.start + first * row_bytes,
                n_bytes=count * row_bytes,
            ),
        )
