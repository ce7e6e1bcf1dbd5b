"""Numbers of adapters, from their places in safetensors files to memory; distrusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backends.files import model_files
from backends.files.adapters import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from backends.files.tensors import StoredTensor

_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_floats(folder: Path, stored: StoredTensor) -> torch.Tensor:
    """float32 of its shape, in host memory. Raises AdapterError for what is cut or holds numbers that are none."""
    try:
        with model_files.opened(folder / stored.file) as file:
            raw = bytearray(file.at(stored.start, stored.n_bytes))
    except model_files.FileError as error:
        raise AdapterError(str(error)) from None
    if len(raw) != stored.n_bytes:
        raise AdapterError(f"{stored.file} was cut while it was read. hint: load the model again")
    values = torch.frombuffer(raw, dtype=_DTYPES[stored.dtype]).view(stored.shape).to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise AdapterError(
            f"{stored.name[:120]} holds numbers that are none (NaN or infinite). hint: its training has diverged"
        )
    return values
