"""A short-lived process that measures what this machine does with weights: ggml's own products, in under three seconds.

Reads one line from its socket, how many threads a model gets, and answers with one: a `backends.speed.Machine` as JSON.
Each figure is the best of several short runs: another process takes time away and never adds any. Things are measured
as a forward pass has them: keys and values of several layers, strided; small operations between products whose weights
sweep the first caches.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from backends.asked import answer_lines
from backends.gguf.ggml_calls import (
    CPU,
    GPU,
    NUMBERS,
    Processor,
    activate,
    add,
    attend,
    best_s,
    fill,
    mul_mat,
    multiply,
    n_bytes_of,
    new_tensor,
    norm,
    opened,
    permute,
    set_bytes,
    set_threads,
    supports,
    tensors,
    weights_of,
)
from backends.gguf.streams import LIKE, matrix_bytes, stream_rate, streams
from backends.gguf.threads import CROWDED, waited_ns
from backends.machine.host import cache_bytes
from backends.speed import GROUP, Machine, Rates

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES: Final = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
_SHORT, _LONG = 256, 2048
"""Columns of matrices whose difference is a rate without what each row costs; both fit into a processor's cache."""
_FEW_ROWS, _MANY_ROWS = 64, 4096
_BATCH: Final = 128
_BATCH_ROWS: Final = 512
_RUNS: Final = 6
_MANY_RUNS: Final = 25
_SMALL_RUNS: Final = 200
"""Of passes of microseconds: beside other processes few of them have all their threads on a core at once."""
_HEADS, _KV_HEADS, _CELLS, _LAYERS = 16, 16 // GROUP, 256, 12
"""Layers have a cache each: one token's attention finds it nowhere nearer than the last cache. On an AMD EPYC it does
5.3 thousand million multiply-adds a second in f16 there and 3.2 in q8_0, against 6.7 and 4.9 where one layer is asked
again and again.
"""
_HEAD_SIZES: Final = (32, 64, 128)
_ATTENDING: Final = 64
"""Tokens of a batch whose attention is measured."""
_LIKE_OTHERS: Final = "Q4_K"
_PRODUCTS, _WIDTH, _BEHIND = 16, 1024, 4
"""Of the pass with which small operations are measured: products, each with a matrix of its own, their rows and
columns, and operations behind each."""
_BARRIER_S, _GATHER_S = 3e-7, 6e-6
"""What an operation and a pass take more where threads wait for each other; measured on two cores. They do it twice in
a product, behind what its input is made to and at its end."""
_LEAST_S: Final = 1e-9


def _product_s(
    processor: Processor, kind: str, rows: int, columns: int, n_tokens: int = 1, *, runs: int = _RUNS
) -> float:
    """Seconds of a pass of one product with a matrix of that type."""

    def make(arena: int) -> list[int]:
        inputs = new_tensor(arena, NUMBERS["F32"], columns, n_tokens, 1)
        return [inputs, mul_mat(arena, weights, inputs)]

    with weights_of(processor, kind, rows, columns) as weights, tensors(processor, None, make) as (arena, made):
        fill(made[0], "F32")
        return best_s(processor, arena, made[1:], runs=runs)


def _nodes_s(processor: Processor, n: int) -> float:
    """Seconds of a pass of so many small operations, one after the other."""

    def make(arena: int) -> list[int]:
        first = last = new_tensor(arena, NUMBERS["F32"], 1024, 1, 1)
        for _ in range(n):
            last = add(arena, last, first)
        return [first, last]

    with tensors(processor, None, make) as (arena, made):
        fill(made[0], "F32")
        return best_s(processor, arena, made[1:], runs=_SMALL_RUNS)


def _attention_rate(processor: Processor, kind: str, size: int, n_tokens: int, graph_s: float) -> float | None:
    """Multiply-adds per second of attention to some cells with heads of that size; None: the processor can't."""
    n_layers = _LAYERS if n_tokens == 1 else 1

    def make(arena: int) -> list[int]:
        made = []
        for _ in range(n_layers):
            queries = new_tensor(arena, NUMBERS["F32"], size, n_tokens, _HEADS)
            mask = new_tensor(arena, NUMBERS["F16"], _CELLS, max(n_tokens, 64), 1)
            cells = [new_tensor(arena, NUMBERS[kind], size, _KV_HEADS, _CELLS) for _ in range(2)]
            keys, values = (permute(arena, one, 0, 2, 1, 3) for one in cells)
            result = attend(arena, queries, keys, values, mask, size**-0.5, 0.0, 0.0)
            made += [queries, mask, *cells, result]
        return made

    with tensors(processor, None, make) as (arena, made):
        results = made[4::5]
        if not supports(processor.backend, results[0]):
            return None
        for queries, mask, *cells in zip(*(made[place::5] for place in range(4)), strict=True):
            fill(queries, "F32")
            zeros = np.zeros(n_bytes_of(mask), dtype=np.uint8)
            set_bytes(mask, zeros.ctypes.data, 0, zeros.nbytes)
            for one in cells:
                fill(one, kind)
        seconds = best_s(processor, arena, results, runs=_RUNS if n_tokens == 1 else 1)
        return n_layers * n_tokens * _CELLS * _HEADS * 2 * size / max(_LEAST_S, seconds - graph_s)


def measured(processor: Processor, streamed: Mapping[str, float]) -> Rates:
    """The rates of one processor as it is: of a CPU with the threads that are set."""
    graph_s = _graph_s(processor)
    weights, rows, batches = {}, {}, {}
    for kind in _TYPES:
        weights[kind], rows[kind] = _decode_rate(processor, kind, graph_s)
        batches[kind] = _batch_rate(processor, kind, graph_s)
    node_s, matrix_s = _between(processor, graph_s, weights[_LIKE_OTHERS], rows[_LIKE_OTHERS])
    return Rates(
        weights,
        rows,
        batches,
        memory=streamed[LIKE],
        attention=_attention_rates(processor, 1, graph_s),
        attention_batches=_attention_rates(processor, _ATTENDING, graph_s),
        matrix_s=matrix_s,
        node_s=node_s,
        graph_s=graph_s,
        like=LIKE,
        streamed=dict(streamed),
        cache_bytes=cache_bytes() if processor.kind == CPU else 0,
    )


def with_threads(cpu: Processor, alone: Rates, streamed: Mapping[str, float], n_threads: int) -> tuple[Rates, bool]:
    """The rates of so many threads, and whether they are rough: other processes held the cores all the time.

    One type tells how all of them scale in the caches. Where threads had to wait for a core, they are taken to scale as
    cores do.
    """
    if n_threads == 1:
        return alone, False
    set_threads(cpu.backend, n_threads)
    waited, began = waited_ns(), time.monotonic_ns()
    graph_s = _graph_s(cpu)
    rate, row_s = _decode_rate(cpu, _LIKE_OTHERS, graph_s, runs=_MANY_RUNS)
    node_s, matrix_s = _between(cpu, graph_s, rate, row_s)
    products, batches = rate / alone.weights[_LIKE_OTHERS], _batch_rate(cpu, _LIKE_OTHERS, graph_s, runs=_MANY_RUNS)
    in_batches = batches / alone.batches[_LIKE_OTHERS]
    rough = waited_ns() - waited > CROWDED * (time.monotonic_ns() - began)
    if rough:
        products = in_batches = float(n_threads)
        streamed = {kind: n_threads * rate for kind, rate in alone.streamed.items()}
        matrix_s = alone.matrix_s + 2 * _BARRIER_S
        node_s, graph_s = alone.node_s + _BARRIER_S, alone.graph_s + _GATHER_S
    rates = alone.scaled(
        products=products,
        in_batches=in_batches,
        memory=streamed[LIKE],
        streamed=streamed,
        matrix_s=matrix_s,
        node_s=node_s,
        graph_s=graph_s,
    )
    return rates, rough


def _attention_rates(processor: Processor, n_tokens: int, graph_s: float) -> dict[str, float]:
    """By type of the cache and size of a head."""
    rates = {}
    for kind in ("F16", "Q8_0", "Q4_0"):
        for size in _HEAD_SIZES:
            if (rate := _attention_rate(processor, kind, size, n_tokens, graph_s)) is not None:
                rates[f"{kind.lower()} {size}"] = rate
    return rates


def _graph_s(processor: Processor) -> float:
    """Seconds of a pass beyond its operations."""
    one, many = _nodes_s(processor, 1), _nodes_s(processor, 65)
    return max(0.0, one - (many - one) / 64)


def _pass_s(processor: Processor, *, others: bool) -> float:
    """Seconds of a pass of products one after the other, with small operations of a layer behind each or without."""
    with contextlib.ExitStack() as stack:
        matrices = [stack.enter_context(weights_of(processor, _LIKE_OTHERS, _WIDTH, _WIDTH)) for _ in range(_PRODUCTS)]

        def make(arena: int) -> list[int]:
            inputs = new_tensor(arena, NUMBERS["F32"], _WIDTH, 1, 1)
            results = [mul_mat(arena, matrix, inputs) for matrix in matrices]
            if others:
                scaled = [multiply(arena, norm(arena, result, 1e-5), inputs) for result in results]
                results = [add(arena, activate(arena, result), inputs) for result in scaled]
            return [inputs, *results]

        arena, made = stack.enter_context(tensors(processor, None, make))
        fill(made[0], "F32")
        return best_s(processor, arena, made[1:], runs=_MANY_RUNS)


def _between(processor: Processor, graph_s: float, rate: float, row_s: float) -> tuple[float, float]:
    """Seconds of a small operation between products, and of a product beyond its weights; `rate` and `row_s` are those
    of one product's weights.
    """
    bare = _pass_s(processor, others=False)
    node_s = (_pass_s(processor, others=True) - bare) / (_PRODUCTS * _BEHIND)
    product_s = matrix_bytes(_LIKE_OTHERS, _WIDTH, _WIDTH) / rate + _WIDTH * row_s
    return max(_LEAST_S, node_s), max(0.0, (bare - graph_s) / _PRODUCTS - product_s)


def _decode_rate(processor: Processor, kind: str, graph_s: float, *, runs: int = _RUNS) -> tuple[float, float]:
    """Bytes per second of weights for one token, and what each row adds to them in seconds."""
    short, long = (_product_s(processor, kind, _MANY_ROWS, n, runs=runs) for n in (_SHORT, _LONG))
    few = _product_s(processor, kind, _FEW_ROWS, _SHORT, runs=runs)
    rate = matrix_bytes(kind, _MANY_ROWS, _LONG - _SHORT) / max(_LEAST_S, long - short)
    row_s = (short - few - matrix_bytes(kind, _MANY_ROWS - _FEW_ROWS, _SHORT) / rate) / (_MANY_ROWS - _FEW_ROWS)
    return rate, max(0.0, row_s)


def _batch_rate(processor: Processor, kind: str, graph_s: float, *, runs: int = 2) -> float:
    """Multiply-adds per second in a batch."""
    seconds = _product_s(processor, kind, _BATCH_ROWS, _LONG, _BATCH, runs=runs)
    return _BATCH_ROWS * _LONG * _BATCH / max(_LEAST_S, seconds - graph_s)


def _link_rate(card: Processor) -> float:
    """Bytes per second from host memory to the card."""
    data = np.zeros(64 << 20, dtype=np.uint8)
    with tensors(card, None, lambda arena: [new_tensor(arena, NUMBERS["I8"], data.nbytes, 1, 1)]) as (_, made):
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            set_bytes(made[0], data.ctypes.data, 0, data.nbytes)
            best = min(best, time.perf_counter() - began)
    return data.nbytes / best


def answer(n_threads: int) -> Machine:
    """Measure everything there is. Raises MemoryError."""
    cpu, card = opened(CPU), opened(GPU)
    if cpu is None:
        raise MemoryError
    by_one, by_all = streams(cpu, n_threads)
    set_threads(cpu.backend, 1)
    alone = measured(replace(cpu, clock=time.thread_time), by_one)  # one thread's own time is no one else's
    together, rough = with_threads(cpu, alone, by_all, n_threads)
    device, link = (measured(card, {LIKE: stream_rate(card)}), _link_rate(card)) if card is not None else (None, 0.0)
    return Machine(together, alone, device, link, "rough" if rough else "measured")


def _told(question: str) -> str:
    n_threads = int(json.loads(question).get("threads") or len(os.sched_getaffinity(0)))
    return msgspec.json.encode(answer(n_threads)).decode()


def main() -> None:
    """Measure once per line that comes."""
    answer_lines("onecard-rates", _told)


if __name__ == "__main__":
    main()
