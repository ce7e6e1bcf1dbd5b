"""Linear layers on the CPU whose rows do not depend on each other, and that are fast for few rows.

16 and 32 bits: MKL adds a row up in another order when there are more rows; oneDNN with packed weights does not, from
two rows on, and takes half the time for few. 8 bits: integer sums are exact in any order; bitsandbytes' own path goes
through float16 and costs ten times as much for one row. Packed 4 bits are left as they are: their rows are independent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.pytorch_utils import Conv1D

from backends.pytorch.library import Linear4bit, Linear8bitLt

if TYPE_CHECKING:
    from collections.abc import Callable

_LEVELS: Final = 127.0


class PackedLinear(torch.nn.Module):
    """float32 or bfloat16, weights in oneDNN's order."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)  # noqa: SLF001
        self._bias = None if bias is None else bias.detach()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        found: torch.dtype = self._packed.dtype
        return found

    @property
    def n_bytes(self) -> int:
        """Of the weights as they lie in memory: oneDNN fills its blocks up with zeros."""
        return _packed_bytes(self._packed)

    @property
    def has_bias(self) -> bool:
        """Whether it adds one."""
        return self._bias is not None

    def unpacked(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weights `(out, in)`, in the common order again, and the biases."""
        return self._packed.to_dense(), self._bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in) -> (..., out)`."""
        rows = x.reshape(-1, self.in_features)
        n_rows = rows.shape[0]
        if n_rows == 1:
            rows = rows.expand(2, -1).contiguous()
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")  # noqa: SLF001
        return out[:n_rows].view(*x.shape[:-1], self.out_features)


class PackedFactor:
    """A matrix of an adapter: oneDNN multiplies by a mask, or adds what was there, within the product.

    So that an adapter costs two operations, and a row whose mask is zero comes out bit for bit as it was.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)  # noqa: SLF001
        self.n_bytes = _packed_bytes(self._packed)

    def times(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(x @ weight.T) * mask`: `(n, in)`, `(n, out) -> (n, out)`, all of one type."""
        return self._combined(x, mask, "mul")

    def plus(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + out`: `(n, in)`, `(n, out) -> (n, out)`, all of one type."""
        return self._combined(x, out, "add")

    def _combined(self, x: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        n_rows = x.shape[0]
        if n_rows == 1:
            x, other = x.expand(2, -1).contiguous(), other.expand(2, -1).contiguous()
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, None, how)  # noqa: SLF001
        return found[:n_rows] if n_rows == 1 else found


class PlainFactor:
    """The same as `PackedFactor`, where rows need not be independent of each other."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        self.n_bytes = weight.nbytes

    def times(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(x @ weight.T) * mask`."""
        return torch.nn.functional.linear(x, self._weight) * mask

    def plus(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + out`."""
        return out + torch.nn.functional.linear(x, self._weight)


class IntegerLinear(torch.nn.Module):
    """8 bits, as bitsandbytes stores them: rows of weights and of activations each scaled to 127 levels.

    Source: LLM.int8() without outliers, https://arxiv.org/abs/2208.07339, section 2.2.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.weight = codes
        self._scales = (scales.float() / (_LEVELS * _LEVELS))[None]
        self._bias = None if bias is None else bias.detach().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in) -> (..., out)`."""
        rows = x.reshape(-1, self.in_features).float()
        largest = rows.abs().amax(-1, keepdim=True).clamp_min_(1e-12)
        codes = (rows * (_LEVELS / largest)).round_().to(torch.int8)
        out = torch._int_mm(codes, self.weight.t()).float().mul_(largest).mul_(self._scales)  # noqa: SLF001
        if self._bias is not None:
            out += self._bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


def integer_copy(module: Any) -> IntegerLinear | None:
    """Of a plain layer, as bitsandbytes would store it; None where integer products are not worth it here."""
    if not _has_integer_products():
        return None
    weight = module.weight.detach().float()
    largest = weight.abs().amax(-1, keepdim=True).clamp_min_(1e-12)
    codes = (weight * (_LEVELS / largest)).round_().to(torch.int8)
    return IntegerLinear(codes, largest[:, 0], module.bias)


def make_rows_independent(model: Any, within: Callable[[str], bool] | None = None) -> None:
    """Replace the linear layers of a model on the CPU, where that is needed, in place.

    `within` chooses among the names of modules, each with a dot behind it.
    """
    for name, module in list(model.named_modules()):
        if within is not None and not within(f"{name}."):
            continue
        made: torch.nn.Module | None = None
        if isinstance(module, Linear4bit):
            _mend_packing(module)
        elif isinstance(module, Linear8bitLt):
            made = integer(module)
        elif _is_plain(module) and isinstance(module, Conv1D):
            made = _packed(module.weight.t(), module.bias)
        elif _is_plain(module) and type(module) is torch.nn.Linear:
            made = _packed(module.weight, module.bias)
        if made is not None:
            model.set_submodule(name, made.eval())


def _packed_bytes(weight: torch.Tensor) -> int:
    return int(torch.ops.mkldnn._nbytes(weight))  # noqa: SLF001


def _is_plain(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dtype in (torch.float32, torch.bfloat16)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module | None:
    return PackedLinear(weight, bias) if can_pack(weight.dtype) else None


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN has an order of its own for such weights on this processor."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def integer(module: Any) -> torch.nn.Module | None:
    """Of a `Linear8bitLt`; None where outliers are computed apart, or integer products are not worth it here."""
    if module.state.threshold > 0.0 or not _has_integer_products():
        return None
    codes = module.weight.CB if module.weight.CB is not None else module.weight.data
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return IntegerLinear(codes.data, scales.data, module.bias)


def _has_integer_products() -> bool:
    """Without AVX-512 PyTorch multiplies integers one by one."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _mend_packing(module: Any) -> None:
    """bitsandbytes packs 4 bits for AVX-512 in blocks of 32 rows and dies of a matrix that is none (0.50.2)."""
    n_rows, n_columns = module.weight.quant_state.shape
    if n_rows % 32 or n_columns % module.weight.quant_state.blocksize or n_columns % 2:
        module.support_avx512bf16_for_cpu = False
