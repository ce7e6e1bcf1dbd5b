"""What an output will take when it is served, by the ledger's own arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from backends.footprint import ALL_LAYERS, Plan, predict
from backends.gguf.header import HeaderInfo, Tensor


def predicted_bytes(header: HeaderInfo, *, context: int, device: Literal["cuda", "cpu"] = "cuda") -> int | None:
    """Bytes with one request of `context` tokens at once, F16 cache; None where the model has not so much context."""
    if header.n_ctx_train and context > header.n_ctx_train:
        return None
    plan = Plan(context=context, parallel=1, kv_type="f16", gpu_layers=ALL_LAYERS, device=device)
    return predict(header, plan).total_bytes


def with_weights(header: HeaderInfo, n_bytes: int) -> HeaderInfo:
    """The same model with weights of another size: a bitsandbytes folder beside its GGUF twin."""
    return replace(header, tensors=(Tensor("output.weight", (1,), "I8", n_bytes),))
