"""A short-lived process that measures what this machine does with weights: ggml's own products, in under three seconds.

Reads one line from its socket, how many threads a model gets, and answers with one: a `backends.speed.Machine` as JSON.
It calls ggml and not llama.cpp, so no model has to be written. Each figure is the best of several short runs: another
process takes time away and never adds any. Format of calls: ggml.h and ggml-backend.h of the bindings' version.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from llama_cpp._ggml import libggml

from backends.asked import answer_lines
from backends.gguf.tensor_types import TENSOR_TYPES
from backends.gguf.threads import CROWDED, waited_ns
from backends.machine.host import cache_bytes
from backends.speed import GROUP, Machine, Rates

if TYPE_CHECKING:
    from collections.abc import Iterator

_TYPES: Final = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
_NUMBERS: Final = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
_SHORT, _LONG = 256, 2048
"""Columns of matrices whose difference is a rate without what each row costs; both fit into a processor's cache."""
_FEW_ROWS, _MANY_ROWS = 64, 4096
_BATCH: Final = 128
_BATCH_ROWS: Final = 512
_STREAMED_BYTES: Final = 128 << 20
_RUNS: Final = 6
_MANY_RUNS: Final = 25
_HEADS, _KV_HEADS, _CELLS = 16, 16 // GROUP, 1024
_HEAD_SIZES: Final = (32, 64, 128)
_ATTENDING: Final = 64
"""Tokens of a batch whose attention is measured."""
_LIKE_OTHERS: Final = "Q4_K"
_WAITING: Final = 4.0
"""Operations whose threads wait for each other take so many times as long as those of one; measured on two cores."""
_LEAST_S: Final = 1e-9
_CPU, _GPU = 0, 1
_ARENA_BYTES: Final = 1 << 22
_P = ctypes.c_void_p


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


def _call(name: str, result: Any, *kinds: Any) -> Callable[..., Any]:
    function: Any = getattr(libggml, name)
    function.restype, function.argtypes = result, list(kinds)
    called: Callable[..., Any] = function
    return called


_i64, _f32, _size = ctypes.c_int64, ctypes.c_float, ctypes.c_size_t
_init = _call("ggml_init", _P, _Init)
_free = _call("ggml_free", None, _P)
_new = _call("ggml_new_tensor_3d", _P, _P, ctypes.c_int, _i64, _i64, _i64)
_mul_mat = _call("ggml_mul_mat", _P, _P, _P, _P)
_add = _call("ggml_add", _P, _P, _P, _P)
_attend = _call("ggml_flash_attn_ext", _P, _P, _P, _P, _P, _P, _f32, _f32, _f32)
_graph = _call("ggml_new_graph", _P, _P)
_expand = _call("ggml_build_forward_expand", None, _P, _P)
_device = _call("ggml_backend_dev_by_type", _P, ctypes.c_int)
_open = _call("ggml_backend_dev_init", _P, _P, ctypes.c_char_p)
_registry = _call("ggml_backend_dev_backend_reg", _P, _P)
_address = _call("ggml_backend_reg_get_proc_address", _P, _P, ctypes.c_char_p)
_plain = _call("ggml_backend_dev_buffer_type", _P, _P)
_alloc = _call("ggml_backend_alloc_ctx_tensors_from_buft", _P, _P, _P)
_buffer_free = _call("ggml_backend_buffer_free", None, _P)
_compute = _call("ggml_backend_graph_compute", ctypes.c_int, _P, _P)
_set = _call("ggml_backend_tensor_set", None, _P, _P, _size, _size)
_n_bytes = _call("ggml_nbytes", _size, _P)
_overhead = _call("ggml_tensor_overhead", _size)
_threads = _call("ggml_backend_cpu_set_n_threads", None, _P, ctypes.c_int)
_supports = _call("ggml_backend_supports_op", ctypes.c_bool, _P, _P)

_OBJECT_BYTES, _BEHIND_EXTRA = 32, 16
"""Of ggml's own header before a tensor, and from a tensor's `extra` to its end."""


@dataclass
class _Processor:
    """One device of ggml."""

    kind: int
    device: int
    backend: int
    clock: Callable[[], float] = time.perf_counter

    @property
    def unpacked(self) -> int | None:
        """The buffer type in which the CPU keeps weights in an order of its own; llama.cpp takes it where it can."""
        address = _address(_registry(self.device), b"ggml_backend_dev_get_extra_bufts")
        if self.kind != _CPU or not address:
            return None
        found = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(address)(self.device)
        return found[0] if found else None


def _opened(kind: int) -> _Processor | None:
    device = _device(kind)
    backend = _open(device, None) if device else None
    return _Processor(kind, device, backend) if backend else None


@contextlib.contextmanager
def _tensors(
    processor: _Processor, buffer_type: int | None, make: Callable[[int], list[int]]
) -> Iterator[tuple[int, list[int]]]:
    """The arena and the tensors that `make` puts into it, in memory of the processor. Raises MemoryError."""
    arena = _init(_Init(_ARENA_BYTES, None, True))
    made = make(arena)
    buffer = _alloc(arena, buffer_type or _plain(processor.device))
    try:
        if not buffer:
            raise MemoryError
        yield arena, made
    finally:
        if buffer:
            _buffer_free(buffer)
        _free(arena)


def _fill(tensor: int, kind: str) -> None:
    """Numbers that are no trouble to compute with: ones, or blocks with small factors."""
    n = _n_bytes(tensor)
    words = {"F32": (np.float32, 1.0), "F16": (np.uint16, 0x3C00), "BF16": (np.uint16, 0x3F80)}
    dtype, value = words.get(kind, (np.uint8, 0x22))
    data = np.full(n // np.dtype(dtype).itemsize, value, dtype=dtype)
    _set(tensor, data.ctypes.data, 0, n)


def _best_s(processor: _Processor, arena: int, results: list[int], *, runs: int = _RUNS) -> float:
    graph = _graph(arena)
    for result in results:
        _expand(graph, result)
    best = float("inf")
    for _ in range(runs + 1):
        began = processor.clock()
        _compute(processor.backend, graph)
        best = min(best, processor.clock() - began)
    return best


@contextlib.contextmanager
def _weights(processor: _Processor, kind: str, rows: int, columns: int) -> Iterator[int]:
    """A matrix of that type as llama.cpp would keep it."""
    number = _NUMBERS[kind]
    for buffer_type in (processor.unpacked, None):
        with _tensors(processor, buffer_type, lambda arena: [_new(arena, number, columns, rows, 1)]) as (_, made):
            extra = ctypes.cast(made[0] + _overhead() - _OBJECT_BYTES - _BEHIND_EXTRA, ctypes.POINTER(ctypes.c_uint64))
            if buffer_type is not None and not extra[0]:  # a type that is kept as it is
                continue
            _fill(made[0], kind)
            yield made[0]
            return


def _product_s(
    processor: _Processor, kind: str, rows: int, columns: int, n_tokens: int = 1, *, runs: int = _RUNS
) -> float:
    """Seconds of a pass of one product with a matrix of that type."""

    def make(arena: int) -> list[int]:
        inputs = _new(arena, _NUMBERS["F32"], columns, n_tokens, 1)
        return [inputs, _mul_mat(arena, weights, inputs)]

    with _weights(processor, kind, rows, columns) as weights, _tensors(processor, None, make) as (arena, made):
        _fill(made[0], "F32")
        return _best_s(processor, arena, made[1:], runs=runs)


def _nodes_s(processor: _Processor, n: int) -> float:
    """Seconds of a pass of so many small operations, one after the other."""

    def make(arena: int) -> list[int]:
        first = last = _new(arena, _NUMBERS["F32"], 1024, 1, 1)
        for _ in range(n):
            last = _add(arena, last, first)
        return [first, last]

    with _tensors(processor, None, make) as (arena, made):
        _fill(made[0], "F32")
        return _best_s(processor, arena, made[1:])


def _attention_rate(processor: _Processor, kind: str, size: int, n_tokens: int, graph_s: float) -> float | None:
    """Multiply-adds per second of attention to some cells with heads of that size; None: the processor can't."""
    number = _NUMBERS[kind]

    def make(arena: int) -> list[int]:
        queries = _new(arena, _NUMBERS["F32"], size, n_tokens, _HEADS)
        keys, values = (_new(arena, number, size, _CELLS, _KV_HEADS) for _ in range(2))
        mask = _new(arena, _NUMBERS["F16"], _CELLS, max(n_tokens, 64), 1)
        return [queries, keys, values, mask, _attend(arena, queries, keys, values, mask, size**-0.5, 0.0, 0.0)]

    with _tensors(processor, None, make) as (arena, made):
        if not _supports(processor.backend, made[4]):
            return None
        for tensor, filled in zip(made[:3], ("F32", kind, kind), strict=True):
            _fill(tensor, filled)
        mask = np.zeros(_n_bytes(made[3]), dtype=np.uint8)
        _set(made[3], mask.ctypes.data, 0, mask.nbytes)
        seconds = _best_s(processor, arena, made[4:], runs=_RUNS if n_tokens == 1 else 1)
        return n_tokens * _CELLS * _HEADS * 2 * size / max(_LEAST_S, seconds - graph_s)


def measured(processor: _Processor) -> Rates:
    """The rates of one processor as it is: of a CPU with the threads that are set."""
    node_s, graph_s = _overheads(processor)
    weights, rows, batches, matrices = {}, {}, {}, []
    for kind in _TYPES:
        weights[kind], rows[kind], matrix_s = _decode_rate(processor, kind, graph_s)
        batches[kind] = _batch_rate(processor, kind, graph_s)
        matrices.append(matrix_s)
    return Rates(
        weights,
        rows,
        batches,
        memory=_memory_rate(processor, graph_s),
        attention=_attention_rates(processor, 1, graph_s),
        attention_batches=_attention_rates(processor, _ATTENDING, graph_s),
        matrix_s=statistics.median(matrices),
        node_s=node_s,
        graph_s=graph_s,
        cache_bytes=cache_bytes() if processor.kind == _CPU else 0,
    )


def with_threads(cpu: _Processor, alone: Rates, n_threads: int) -> tuple[Rates, bool]:
    """The rates of so many threads, and whether they are rough: other processes held the cores all the time.

    One type tells how all of them scale. Where threads had to wait for a core, they are taken to scale as cores do.
    """
    if n_threads == 1:
        return alone, False
    _threads(cpu.backend, n_threads)
    waited, began = waited_ns(), time.monotonic_ns()
    node_s, graph_s = _overheads(cpu)
    rate, _, matrix_s = _decode_rate(cpu, _LIKE_OTHERS, graph_s, runs=_MANY_RUNS)
    products, batches = rate / alone.weights[_LIKE_OTHERS], _batch_rate(cpu, _LIKE_OTHERS, graph_s, runs=_MANY_RUNS)
    in_batches, memory = batches / alone.batches[_LIKE_OTHERS], _memory_rate(cpu, graph_s)
    rough = waited_ns() - waited > CROWDED * (time.monotonic_ns() - began)
    if rough:
        products = in_batches = float(n_threads)
        memory, matrix_s = alone.memory * n_threads, alone.matrix_s
        node_s, graph_s = _WAITING * alone.node_s, _WAITING * alone.graph_s
    rates = alone.scaled(
        products=products,
        in_batches=in_batches,
        memory=memory,
        matrix_s=matrix_s,
        node_s=node_s,
        graph_s=graph_s,
    )
    return rates, rough


def _attention_rates(processor: _Processor, n_tokens: int, graph_s: float) -> dict[str, float]:
    """By type of the cache and size of a head."""
    rates = {}
    for kind in ("F16", "Q8_0", "Q4_0"):
        for size in _HEAD_SIZES:
            if (rate := _attention_rate(processor, kind, size, n_tokens, graph_s)) is not None:
                rates[f"{kind.lower()} {size}"] = rate
    return rates


def _overheads(processor: _Processor) -> tuple[float, float]:
    """Seconds of a small operation, and of a pass beyond its operations."""
    one, many = _nodes_s(processor, 1), _nodes_s(processor, 65)
    node_s = max(_LEAST_S, (many - one) / 64)
    return node_s, max(0.0, one - node_s)


def _decode_rate(processor: _Processor, kind: str, graph_s: float, *, runs: int = _RUNS) -> tuple[float, float, float]:
    """Bytes per second of weights for one token, what each row adds to them, and each product."""
    short, long = (_product_s(processor, kind, _MANY_ROWS, n, runs=runs) for n in (_SHORT, _LONG))
    few = _product_s(processor, kind, _FEW_ROWS, _SHORT, runs=runs)
    rate = (_bytes(kind, _MANY_ROWS, _LONG) - _bytes(kind, _MANY_ROWS, _SHORT)) / max(_LEAST_S, long - short)
    row_s = (short - few - _bytes(kind, _MANY_ROWS - _FEW_ROWS, _SHORT) / rate) / (_MANY_ROWS - _FEW_ROWS)
    matrix_s = few - graph_s - _bytes(kind, _FEW_ROWS, _SHORT) / rate - _FEW_ROWS * row_s
    return rate, max(0.0, row_s), max(0.0, matrix_s)


def _bytes(kind: str, rows: int, columns: int) -> int:
    block, block_bytes = TENSOR_TYPES[_NUMBERS[kind]][1:]
    return rows * columns // block * block_bytes


def _batch_rate(processor: _Processor, kind: str, graph_s: float, *, runs: int = 2) -> float:
    """Multiply-adds per second in a batch."""
    seconds = _product_s(processor, kind, _BATCH_ROWS, _LONG, _BATCH, runs=runs)
    return _BATCH_ROWS * _LONG * _BATCH / max(_LEAST_S, seconds - graph_s)


def _memory_rate(processor: _Processor, graph_s: float) -> float:
    """Bytes per second of a matrix that no cache holds."""
    rows = _STREAMED_BYTES // (2 * _LONG)
    return _bytes("F16", rows, _LONG) / (_product_s(processor, "F16", rows, _LONG) - graph_s)


def _link_rate(card: _Processor) -> float:
    """Bytes per second from host memory to the card."""
    data = np.zeros(64 << 20, dtype=np.uint8)
    with _tensors(card, None, lambda arena: [_new(arena, _NUMBERS["I8"], data.nbytes, 1, 1)]) as (_, made):
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            _set(made[0], data.ctypes.data, 0, data.nbytes)
            best = min(best, time.perf_counter() - began)
    return data.nbytes / best


def answer(n_threads: int) -> Machine:
    """Measure everything there is. Raises MemoryError."""
    cpu, card = _opened(_CPU), _opened(_GPU)
    if cpu is None:
        raise MemoryError
    _threads(cpu.backend, 1)
    alone = measured(replace(cpu, clock=time.thread_time))  # one thread's own time is no one else's
    together, rough = with_threads(cpu, alone, n_threads)
    device, link = (measured(card), _link_rate(card)) if card is not None else (None, 0.0)
    return Machine(together, alone, device, link, "rough" if rough else "measured")


def _told(question: str) -> str:
    n_threads = int(json.loads(question).get("threads") or len(os.sched_getaffinity(0)))
    return msgspec.json.encode(answer(n_threads)).decode()


def main() -> None:
    """Measure once per line that comes."""
    answer_lines("onecard-rates", _told)


if __name__ == "__main__":
    main()
