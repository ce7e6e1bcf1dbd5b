"""The numbers of an adapter's matrices, read from its folder; whatever computes with them takes them from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.files import model_files
from backends.files.adapters import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.files.tensors import StoredTensor


def read_floats(folder: Path, stored: StoredTensor) -> NDArray[np.float32]:
    """One matrix in float32, in its shape, all of it finite. Raises AdapterError; blocks on the disk."""
    try:
        with model_files.opened(folder / stored.file) as file:
            raw = file.at(stored.start, stored.n_bytes)
    except model_files.FileError as error:
        raise AdapterError(str(error)) from None
    if len(raw) != stored.n_bytes:
        raise AdapterError(f"{stored.file} was cut while it was read. hint: try it again")
    if stored.dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, "<f2" if stored.dtype == "F16" else "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise AdapterError(
            f"{stored.name[:120]} holds numbers that are none (NaN or infinite). hint: its training has diverged"
        )
    return values.reshape(stored.shape)
