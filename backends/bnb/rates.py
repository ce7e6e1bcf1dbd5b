"""A short-lived process that measures what this machine does with weights through PyTorch and bitsandbytes.

Answers one line on its socket with a `backends.speed.Machine` as JSON. The layers are those that a load makes
(`backends.pytorch.linear`), so what is measured is what computes. Each figure is the best of several short runs.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
from torch.nn.functional import scaled_dot_product_attention

from backends.asked import answer_lines
from backends.machine.host import cache_bytes
from backends.pytorch import linear
from backends.pytorch.library import Linear4bit, Linear8bitLt
from backends.speed import GROUP, Machine, Rates

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: Final = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_BYTES: Final = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "int8": 1.0, "nf4": 0.5}
_COLUMNS, _FEW_ROWS, _MANY_ROWS = 1024, 256, 4096
_BATCH: Final = 128
_HEADS, _CELLS, _SIZES = 16, 1024, (32, 64, 128)
_RUNS: Final = 5
_MANY_RUNS: Final = 15
_LIKE: Final = "bf16"
_MOST_SCALING: Final = 1.5
"""Threads that read from caches of their own are faster than so many times one; beyond that it is noise."""
_LEAST_S: Final = 1e-9
_STREAMED_BYTES: Final = 128 << 20


@dataclass(frozen=True)
class _Processor:
    device: torch.device
    clock: Callable[[], float]

    def best_s(self, work: Callable[[], object], runs: int = _RUNS) -> float:
        """Seconds of the fastest run; a card is waited for."""
        best = float("inf")
        for _ in range(runs + 1):
            began = self.clock()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, self.clock() - began)
        return best


def _layer(kind: str, rows: int, columns: int, device: torch.device) -> torch.nn.Module:
    """A linear layer of that type as a load makes it."""
    if kind == "nf4":
        made: Any = Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    elif kind == "int8":
        made = Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
    else:
        made = torch.nn.Linear(columns, rows, bias=False, dtype=_PLAIN[kind])
    holder = torch.nn.Sequential(made.to(device)).eval()
    if device.type == "cpu":
        linear.make_rows_independent(holder)
    return holder


def _product_s(processor: _Processor, kind: str, rows: int, n_tokens: int, runs: int = _RUNS) -> float:
    layer = _layer(kind, rows, _COLUMNS, processor.device)
    inputs = torch.ones(1, n_tokens, _COLUMNS, dtype=_computed(kind), device=processor.device)
    return processor.best_s(lambda: layer(inputs), runs)


def _computed(kind: str) -> torch.dtype:
    return _PLAIN.get(kind, torch.bfloat16)


def _attention_rate(processor: _Processor, kind: str, size: int, n_tokens: int) -> float:
    """Multiply-adds per second with heads of that size."""
    queries = torch.ones(1, _HEADS, n_tokens, size, dtype=_PLAIN[kind], device=processor.device)
    keys = torch.ones(1, _HEADS // GROUP, _CELLS, size, dtype=_PLAIN[kind], device=processor.device)

    def attend() -> object:
        return scaled_dot_product_attention(queries, keys, keys, enable_gqa=True)

    return n_tokens * _CELLS * _HEADS * 2 * size / max(_LEAST_S, processor.best_s(attend))


def _decode_rate(processor: _Processor, kind: str, runs: int = _RUNS) -> tuple[float, float]:
    """Bytes per second of weights for one token, and what a product takes beyond them."""
    few_s, many_s = (_product_s(processor, kind, rows, 1, runs) for rows in (_FEW_ROWS, _MANY_ROWS))
    rate = (_MANY_ROWS - _FEW_ROWS) * _COLUMNS * _BYTES[kind] / max(_LEAST_S, many_s - few_s)
    return rate, max(0.0, few_s - _FEW_ROWS * _COLUMNS * _BYTES[kind] / rate)


def _batch_rate(processor: _Processor, kind: str, runs: int = 2) -> float:
    """Multiply-adds per second in a batch."""
    return _FEW_ROWS * _COLUMNS * _BATCH / max(_LEAST_S, _product_s(processor, kind, _FEW_ROWS, _BATCH, runs))


def _memory_rate(processor: _Processor) -> float:
    """Bytes per second of a matrix that no cache holds."""
    rows = int(_STREAMED_BYTES // (_BYTES[_LIKE] * _COLUMNS))
    return _STREAMED_BYTES / _product_s(processor, _LIKE, rows, 1, 3)


def measured(processor: _Processor) -> Rates:
    """The rates of one processor as it is: of a CPU with the threads that are set."""
    vector = torch.ones(1, 1, _COLUMNS, device=processor.device)
    node_s = processor.best_s(lambda: [vector * vector for _ in range(64)]) / 64
    on_card = processor.device.type == "cuda"
    kinds = [kind for kind in _BYTES if on_card or kind != "f16"]
    weights, batches, matrices = {}, {}, []
    for kind in kinds:
        weights[kind], matrix_s = _decode_rate(processor, kind)
        batches[kind] = _batch_rate(processor, kind)
        matrices.append(matrix_s)
    caches = ("f16", "bf16", "f32") if on_card else ("bf16", "f32")
    return Rates(
        weights,
        {},
        batches,
        memory=_memory_rate(processor),
        attention={f"{k} {n}": _attention_rate(processor, k, n, 1) for k in caches for n in _SIZES},
        attention_batches={f"{k} {n}": _attention_rate(processor, k, n, 32) for k in caches for n in _SIZES},
        matrix_s=statistics.median(matrices),
        node_s=node_s,
        cache_bytes=0 if on_card else cache_bytes(),
        like=_LIKE,
    )


def with_threads(alone: Rates, n_threads: int) -> tuple[Rates, bool]:
    """The rates of so many threads, and whether they are rough: one thread was faster, because others held the cores.

    One type tells how all of them scale; where that cannot be told they are taken to scale as cores do.
    """
    torch.set_num_threads(n_threads)
    cpu = _Processor(torch.device("cpu"), time.perf_counter)
    rate, matrix_s = _decode_rate(cpu, _LIKE, _MANY_RUNS)
    products = rate / alone.weights[_LIKE]
    in_batches = _batch_rate(cpu, _LIKE, _MANY_RUNS) / alone.batches[_LIKE]
    rough = n_threads > 1 and not (1 <= products <= _MOST_SCALING * n_threads and in_batches >= 1)
    if rough:
        products = in_batches = float(n_threads)
        matrix_s = alone.matrix_s
    memory = alone.memory * n_threads if rough else _memory_rate(cpu)
    rates = alone.scaled(
        products=products,
        in_batches=in_batches,
        memory=memory,
        streamed={},
        matrix_s=matrix_s,
        node_s=alone.node_s,
        graph_s=0.0,
    )
    return rates, rough


@torch.inference_mode()
def answer() -> Machine:
    """Measure everything there is."""
    torch.set_num_threads(1)
    alone = measured(_Processor(torch.device("cpu"), time.thread_time))  # one thread's own time is no one else's
    together, rough = with_threads(alone, len(os.sched_getaffinity(0)))
    on_card = measured(_Processor(torch.device("cuda"), time.perf_counter)) if torch.cuda.is_available() else None
    return Machine(together, alone, on_card, 1.0, "rough" if rough else "measured")


def main() -> None:
    """Measure once per line that comes."""
    answer_lines("onecard-rates", lambda _question: msgspec.json.encode(answer()).decode())


if __name__ == "__main__":
    main()
