"""The tensors of a model's one file as its networks take them: which rows of which stored tensor, and how they change.

8-bit floats are stored as they are, or with one number beside a layer's matrix that each value is multiplied with:
`scale_weight` or `weight_scale`, as ComfyUI has them (`comfy.ops`, `comfy.utils.convert_old_quants`). What scales
activations (`scale_input`, `input_scale`) is for kernels that multiply in 8 bits, and not used.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, Literal

from backends.backend import HeaderError
from backends.files.tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EIGHT_BITS: Final = ("F8_E4M3", "F8_E5M2")
_FLOATS: Final = ("F32", "F16", "BF16")
_SCALES: Final = ("scale_weight", "weight_scale")
_UNUSED: Final = ("scale_input", "input_scale")

Change = Literal["none", "halves", "transposed", "identity"]
"""What becomes of the numbers: halves of the rows change places, rows become columns, or nothing of them is used and
the matrix is the identity."""


@dataclasses.dataclass(frozen=True)
class FileTensor(StoredTensor):
    """One tensor of a network, its part before its name, and the rows of a file's tensor that it is read from.

    `shape` is the network's, and `start` and `n_bytes` are those of the rows.
    """

    source: str = ""
    """What the file calls the tensor with the rows."""
    change: Change = "none"
    scale: StoredTensor | None = None
    """One number of the file that each is multiplied with."""


def checked(tensor: StoredTensor, held: Mapping[str, StoredTensor], beside: Sequence[str]) -> StoredTensor | None:
    """What scales a tensor of the file; None where nothing does. `beside` are names in its layer, without the layer's.

    Raises HeaderError for numbers that are not read.
    """
    if tensor.dtype not in (*_FLOATS, *EIGHT_BITS):
        raise HeaderError(
            f"{tensor.name[:120]} is stored as {tensor.dtype}, which onecard does not read. hint: take the file in 16 "
            "bits or in float8, and quantization = 'bnb-8bit' or 'bnb-4bit'"
        )
    layer, _, kind = tensor.name.rpartition(".")
    if kind != "weight":
        return None
    odd = next((one for one in beside if "scale" in one and one not in (*_SCALES, *_UNUSED)), None)
    if odd is not None and tensor.dtype in EIGHT_BITS:
        raise HeaderError(
            f"{layer[:120]}.{odd[:40]} scales a matrix in a way that onecard does not read. hint: take the file in 16 "
            f"bits, or in float8 with one {' or '.join(_SCALES)} for each matrix"
        )
    scales = [held[f"{layer}.{one}"] for one in _SCALES if one in beside]
    for scale in scales:
        if scale.n_elements != 1 or scale.dtype not in _FLOATS:
            raise HeaderError(
                f"{scale.name[:120]} is {told_shape(scale.shape)} {scale.dtype}, and onecard reads one "
                "float for a whole matrix. hint: take the file in 16 bits"
            )
    if len(scales) > 1:
        raise HeaderError(
            f"{layer[:120]} is scaled twice: {' and '.join(_SCALES)}. hint: was the file converted twice?"
        )
    return scales[0] if scales else None


def as_linear(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A matrix's shape where it is stored as a convolution of 1 x 1, which multiplies alike."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def told_shape(shape: tuple[int, ...]) -> str:
    """For people."""
    return " x ".join(map(str, shape)) or "one number"
