"""What outputs will weigh and take, before anything is written: exact sizes from llama.cpp's dry run on an outline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.backend import Header
from backends.gguf.info import HeaderInfo
from backends.messages import Device
from quantize import bnb, memory, quantizer, replaced
from quantize.errors import QuantizeError
from quantize.hf.source import HfSource
from quantize.order import Order
from quantize.report.card import memory_headings
from quantize.types import FIT_LADDER, FLOATS, is_bnb
from quantize.words import size

LEAST_CONTEXT = 256
"""No hint names a smaller one."""


@dataclass(frozen=True)
class Estimate:
    """One output that could be made."""

    type_name: str
    n_bytes: int
    n_weights: int
    header: Header | None
    """What its memory is predicted from; None where nothing predicts it."""
    remarks: tuple[str, ...] = ()
    """Where it is not what its name says, a sentence each."""

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors."""
        return 8 * self.n_bytes / max(1, self.n_weights)

    def memory(self, context: int, device: Device) -> int | None:
        """Predicted bytes when served."""
        return memory.predicted_bytes(self.header, context=context, device=device) if self.header else None


def recipe(order: Order, type_name: str, *, imatrix: Path | None) -> quantizer.Recipe:
    """The part of an order that concerns llama.cpp's quantiser."""
    return quantizer.Recipe(
        type_name,
        output_type=order.output_type,
        embedding_type=order.embedding_type,
        overrides=order.overrides,
        pure=order.pure,
        imatrix=None if type_name in FLOATS else imatrix,
        requantize=order.requantize,
        threads=order.threads,
    )


def estimate(order: Order, type_name: str, base: Path | None, info: HeaderInfo | None, hf: HfSource | None) -> Estimate:
    """Of one type; `base` is the GGUF it is made from or its outline, `info` the header of that."""
    if is_bnb(type_name):
        assert hf is not None
        n_bytes = bnb.outcome_bytes(hf, type_name)
        n = sum(math.prod(one.shape) for one in hf.tensors.values())
        return Estimate(type_name, n_bytes, n, memory.of_folder(hf.path, type_name))
    assert base is not None
    assert info is not None
    made = quantizer.outcome(base, recipe(order, type_name, imatrix=None), info)
    remarks = replaced.remarks(type_name, made.replaced, made.header)
    return Estimate(type_name, made.header.file_bytes, n_weights(info), made.header, tuple(remarks))


def n_weights(info: HeaderInfo) -> int:
    """Numbers in all tensors."""
    return sum(math.prod(tensor.shape) for tensor in info.tensors)


def choose(order: Order, base: Path | None, info: HeaderInfo | None, hf: HfSource | None) -> list[Estimate]:
    """What will be made: the types asked for, or with `--fit` the largest that fits. Raises QuantizeError."""
    if order.fit_bytes is None:
        return [estimate(order, name, base, info, hf) for name in order.types]
    context = min(order.context, info.n_ctx_train or order.context) if info else order.context
    tried = [estimate(order, name, base, info, hf) for name in order.types or FIT_LADDER]
    if not order.types and info and any(t.type_name not in FLOATS for t in info.tensors):
        raise QuantizeError("--fit needs an unquantised source", usage=True)
    for one in sorted(tried, key=lambda entry: -entry.n_bytes):
        needed = one.memory(context, order.device)
        if needed is not None and needed <= order.fit_bytes:
            return [one]
    least = min(tried, key=lambda entry: entry.n_bytes)
    needed = least.memory(context, order.device)
    raise QuantizeError(
        f"{order.model_name} does not fit {size(order.fit_bytes)} at context {context}: even {least.type_name} "
        f"({size(least.n_bytes)}) needs {size(needed or 0)} on {order.device}. {_hint(least, context, order)}",
        does_not_fit=True,
    )


def _hint(least: Estimate, context: int, order: Order) -> str:
    """A context at which the smallest output fits, only where there is one."""
    while (context := context // 2) >= LEAST_CONTEXT:
        needed = least.memory(context, order.device)
        if needed is not None and needed <= (order.fit_bytes or 0):
            return f"hint: --context {context} fits"
    return "hint: no smaller context makes it fit; more memory or a smaller model does"


def table(estimates: Sequence[Estimate], contexts: Sequence[int], device: Device) -> list[tuple[str, ...]]:
    """Heading and rows of texts."""
    heading = ("TYPE", "SIZE", "BITS/W", *memory_headings(contexts))
    body = [
        (
            one.type_name,
            size(one.n_bytes),
            f"{one.bits_per_weight:.2f}",
            *("-" if (n := one.memory(context, device)) is None else size(n) for context in contexts),
        )
        for one in estimates
    ]
    return [heading, *body]
