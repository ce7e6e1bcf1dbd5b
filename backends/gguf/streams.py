"""How fast weights are read that no cache holds: by one thread and by all, of the same matrix in the same moment.

Types differ in what a second thread brings. On two cores of an AMD EPYC it is 1.2 times as fast for Q6_K, 1.4 for Q4_K
and 1.7 for Q4_1: the ones wait for memory, the others for the processor.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from backends.gguf.ggml_calls import (
    NUMBERS,
    Processor,
    best_s,
    fill,
    mul_mat,
    new_tensor,
    set_threads,
    tensors,
    weights_of,
)
from backends.gguf.tensor_types import TENSOR_TYPES
from backends.machine.host import cache_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

LIKE: Final = "Q8_0"
"""Its products take the least arithmetic per byte, so what memory adds to them shows. It stands for types that have no
figure of their own, and is measured at the beginning, in the middle and at the end: memory that other machines share is
not as fast in every moment.
"""
_TYPES: Final = (LIKE, "F16", "Q4_0", "Q4_1", "Q5_0", LIKE, "Q4_K", "Q5_K", "Q6_K", "MXFP4", LIKE)
"""What files are mostly made of."""
_MOST_BYTES: Final = 128 << 20
_COLUMNS: Final = 1024
"""As many rows of models have."""
_RUNS: Final = 5


def streams(cpu: Processor, n_threads: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes per second of each type with one thread, and with so many. Raises MemoryError.

    One thread is timed by its own clock: other processes take nothing of that.
    """
    n_bytes = min(_MOST_BYTES, max(2 * cache_bytes(), _MOST_BYTES // 2))
    found = [(kind, *_both_rates(cpu, kind, n_bytes, n_threads)) for kind in _TYPES]
    alone = {kind: statistics.median(one for name, one, _ in found if name == kind) for kind in _TYPES}
    together = {kind: statistics.median(of_all for name, _, of_all in found if name == kind) for kind in _TYPES}
    return alone, together


def _both_rates(cpu: Processor, kind: str, n_bytes: int, n_threads: int) -> tuple[float, float]:
    rows = n_bytes // matrix_bytes(kind, 1, _COLUMNS)
    with _product(cpu, kind, rows) as (arena, result):
        set_threads(cpu.backend, 1)
        one_s = all_s = best_s(replace(cpu, clock=time.thread_time), arena, [result], runs=_RUNS)
        if n_threads > 1:
            set_threads(cpu.backend, n_threads)
            all_s = best_s(cpu, arena, [result], runs=_RUNS)
    n_read = matrix_bytes(kind, rows, _COLUMNS)
    return n_read / one_s, n_read / all_s


def stream_rate(card: Processor) -> float:
    """Bytes per second that a card reads of the type that stands for all. Raises MemoryError."""
    rows = _MOST_BYTES // matrix_bytes(LIKE, 1, _COLUMNS)
    with _product(card, LIKE, rows) as (arena, result):
        return matrix_bytes(LIKE, rows, _COLUMNS) / best_s(card, arena, [result], runs=_RUNS)


@contextlib.contextmanager
def _product(processor: Processor, kind: str, rows: int) -> Iterator[tuple[int, int]]:
    """The arena, and one token's product with a matrix of that type."""

    def make(arena: int) -> list[int]:
        inputs = new_tensor(arena, NUMBERS["F32"], _COLUMNS, 1, 1)
        return [inputs, mul_mat(arena, weights, inputs)]

    with weights_of(processor, kind, rows, _COLUMNS) as weights, tensors(processor, None, make) as (arena, made):
        fill(made[0], "F32")
        yield arena, made[1]


def matrix_bytes(kind: str, rows: int, columns: int) -> int:
    """Of a matrix of that type."""
    block, block_bytes = TENSOR_TYPES[NUMBERS[kind]][1:]
    return rows * columns // block * block_bytes
