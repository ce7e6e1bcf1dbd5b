"""ggml as it is: tensors in memory of one processor, and how long a graph of them takes.

Calls ggml and not llama.cpp, so no model has to be written. Format of calls: ggml.h and ggml-backend.h of the bindings'
version.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llama_cpp._ggml import libggml

from backends.gguf.tensor_types import TENSOR_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_RUNS: Final = 6
CPU, GPU = 0, 1
_ARENA_BYTES: Final = 1 << 22
_P = ctypes.c_void_p
NUMBERS: Final = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


def _call(name: str, result: Any, *kinds: Any) -> Callable[..., Any]:
    function: Any = getattr(libggml, name)
    function.restype, function.argtypes = result, list(kinds)
    called: Callable[..., Any] = function
    return called


_i64, _f32, _size = ctypes.c_int64, ctypes.c_float, ctypes.c_size_t
init = _call("ggml_init", _P, _Init)
free = _call("ggml_free", None, _P)
new_tensor = _call("ggml_new_tensor_3d", _P, _P, ctypes.c_int, _i64, _i64, _i64)
mul_mat = _call("ggml_mul_mat", _P, _P, _P, _P)
add = _call("ggml_add", _P, _P, _P, _P)
attend = _call("ggml_flash_attn_ext", _P, _P, _P, _P, _P, _P, _f32, _f32, _f32)
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
set_bytes = _call("ggml_backend_tensor_set", None, _P, _P, _size, _size)
n_bytes_of = _call("ggml_nbytes", _size, _P)
_overhead = _call("ggml_tensor_overhead", _size)
set_threads = _call("ggml_backend_cpu_set_n_threads", None, _P, ctypes.c_int)
supports = _call("ggml_backend_supports_op", ctypes.c_bool, _P, _P)
permute = _call("ggml_permute", _P, _P, _P, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)
norm = _call("ggml_rms_norm", _P, _P, _P, _f32)
multiply = _call("ggml_mul", _P, _P, _P, _P)
activate = _call("ggml_silu", _P, _P, _P)

_OBJECT_BYTES, _BEHIND_EXTRA = 32, 16
"""Of ggml's own header before a tensor, and from a tensor's `extra` to its end."""

FACTORS: Final = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where in a block its factor of 16 bits stands, and that of its least number: ggml-common.h."""
N_BLOCKS: Final = 4099
"""A prime, so that rows do not begin alike."""
_FACTOR, _LEAST, _EXPONENT = 0.02, -0.3, 120
"""Middle of a block's factor and of its least number. Of MXFP4 the exponent."""
_LARGE_BLOCK: Final = 256
_SPREADS, _LARGE_SPREADS = (0.28, 0.32), (0.18, 0.21)
"""Standard deviation of the logarithms of both, in blocks of 32 and of 256 weights: means of SmolLM2's layers in Q4_1,
Q8_0, Q4_K and Q6_K. How wide they lie counts: with 0.35 two threads read Q8_0 at 29 GB/s, with 0.25 at 33."""


@dataclass
class Processor:
    """One device of ggml."""

    kind: int
    device: int
    backend: int
    clock: Callable[[], float] = time.perf_counter

    @property
    def unpacked(self) -> int | None:
        """The buffer type in which the CPU keeps weights in an order of its own; llama.cpp takes it where it can."""
        address = _address(_registry(self.device), b"ggml_backend_dev_get_extra_bufts")
        if self.kind != CPU or not address:
            return None
        found = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(address)(self.device)
        return found[0] if found else None


def opened(kind: int) -> Processor | None:
    """The CPU or the card; None where ggml has none."""
    device = _device(kind)
    backend = _open(device, None) if device else None
    return Processor(kind, device, backend) if backend else None


@contextlib.contextmanager
def tensors(
    processor: Processor, buffer_type: int | None, make: Callable[[int], list[int]]
) -> Iterator[tuple[int, list[int]]]:
    """The arena and the tensors that `make` puts into it, in memory of the processor. Raises MemoryError."""
    arena = init(_Init(_ARENA_BYTES, None, True))
    made = make(arena)
    buffer = _alloc(arena, buffer_type or _plain(processor.device))
    try:
        if not buffer:
            raise MemoryError
        yield arena, made
    finally:
        if buffer:
            _buffer_free(buffer)
        free(arena)


def fill(tensor: int, kind: str) -> None:
    """Numbers as weights have them: ones, or blocks whose factors differ.

    On x86 ggml looks a block's factor up in a table of 256 KiB. Where all are equal that entry never leaves the first
    cache, and products of Q4_1 on an AMD EPYC take 1.34 ms instead of the 1.75 to 2.06 with a model's own weights.
    """
    n = n_bytes_of(tensor)
    words = {"F32": (np.float32, 1.0), "F16": (np.uint16, 0x3C00), "BF16": (np.uint16, 0x3F80)}
    if kind in words:
        dtype, value = words[kind]
        data = np.full(n // np.dtype(dtype).itemsize, value, dtype=dtype)
    else:
        data = np.resize(blocks_of(kind), n)
    set_bytes(tensor, data.ctypes.data, 0, n)


def blocks_of(kind: str) -> NDArray[np.uint8]:
    """Some blocks of a type, one behind the other; factors are those of numbers that are spread normally."""
    numbers = np.random.Generator(np.random.SFC64(1))
    n_weights, block_bytes = TENSOR_TYPES[NUMBERS[kind]][1:]
    spreads = _LARGE_SPREADS if n_weights == _LARGE_BLOCK else _SPREADS
    blocks = numbers.integers(0, 256, (N_BLOCKS, block_bytes), dtype=np.uint8)
    for place, factor, spread in zip(FACTORS.get(kind, ()), (_FACTOR, _LEAST), spreads, strict=False):
        factors = (factor * numbers.lognormal(0.0, spread, N_BLOCKS)).astype(np.float16)
        blocks[:, place : place + 2] = factors[:, None].view(np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = _EXPONENT
    return blocks.reshape(-1)


def best_s(processor: Processor, arena: int, results: list[int], *, runs: int = _RUNS) -> float:
    """Seconds of the quickest of so many passes that compute these."""
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
def weights_of(processor: Processor, kind: str, rows: int, columns: int) -> Iterator[int]:
    """A matrix of that type as llama.cpp would keep it."""
    number = NUMBERS[kind]
    for buffer_type in (processor.unpacked, None):
        with tensors(processor, buffer_type, lambda arena: [new_tensor(arena, number, columns, rows, 1)]) as (_, made):
            extra = ctypes.cast(made[0] + _overhead() - _OBJECT_BYTES - _BEHIND_EXTRA, ctypes.POINTER(ctypes.c_uint64))
            if buffer_type is not None and not extra[0]:  # a type that is kept as it is
                continue
            fill(made[0], kind)
            yield made[0]
            return
