"""How a llama.cpp context is configured, and what one would take in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import llama_cpp

from backends.engine import LoadError
from backends.gguf.library_log import explain
from backends.kv_types import keys_and_values
from backends.messages.plans import pool_cells
from backends.plan import SCORED_ROWS

if TYPE_CHECKING:
    from backends.gguf.model import Model
    from backends.messages import KvLayout, KvOffload, KvType, KvTypes

GGML_KV_TYPE: dict[KvType, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "bf16": 30,
}
PASSES = 4
"""A batch may be so many passes long: what a fast card computes within a step's time."""


@dataclass(frozen=True, slots=True)
class ContextSizes:
    """What a context would take, in bytes (llama.cpp tells them rounded to 0.01 MiB)."""

    cache: int
    compute: dict[str, int]
    """By device."""
    output: dict[str, int]


def dry_context(
    model: Model,
    *,
    context: int,
    parallel: int,
    kv_type: KvTypes,
    max_batch: int,
    layout: KvLayout = "split",
    kv_tokens: int = 0,
    kv_offload: KvOffload = "card",
) -> ContextSizes:
    """The sizes of a context on a dry model; the real one takes the same. Raises LoadError."""
    log = model.log
    log.lines.clear()
    params = context_params(
        context=context,
        parallel=parallel,
        kv_type=kv_type,
        max_batch=max_batch,
        n_threads=1,
        layout=layout,
        kv_tokens=kv_tokens,
        kv_offload=kv_offload,
    )
    pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    if not pointer:
        raise LoadError(explain(log))
    llama_cpp.llama_free(pointer)
    scored = scored_bytes(model)
    output = {device: n_bytes + scored for device, n_bytes in log.buffers("output").items()}
    return ContextSizes(cache=log.cache_bytes(), compute=log.buffers("compute"), output=output)


def scored_bytes(model: Model) -> int:
    """What the output buffer grows by when the first prompt is scored; llama.cpp reports it without."""
    return SCORED_ROWS * model.n_vocab * 4


def context_params(
    *,
    context: int,
    parallel: int,
    kv_type: KvTypes,
    max_batch: int,
    n_threads: int,
    layout: KvLayout,
    kv_tokens: int,
    kv_offload: KvOffload,
) -> llama_cpp.llama_context_params:
    """The one place where a context is configured, so that a dry one has the sizes of the real one."""
    params = llama_cpp.llama_context_default_params()
    pool_tokens = kv_tokens if layout == "unified" else 0
    params.n_ctx = pool_cells(context=context, parallel=parallel, kv_tokens=pool_tokens)
    params.n_ubatch = max(max_batch, parallel)
    params.n_batch = PASSES * params.n_ubatch  # costs no memory: buffers are as large as a pass
    params.n_seq_max = parallel
    params.n_outputs_max = parallel + SCORED_ROWS
    params.n_threads = params.n_threads_batch = n_threads
    params.type_k, params.type_v = (GGML_KV_TYPE[kind] for kind in keys_and_values(kv_type))
    params.offload_kqv = kv_offload == "card"
    params.kv_unified = layout == "unified"
    params.swa_full = False  # layers with a sliding window keep the window's cells, not the whole context's
    params.no_perf = True
    return params
