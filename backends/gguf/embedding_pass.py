"""llama.cpp's passes over rows of media: a batch of embeddings, which never holds a token.

A batch with both pointers set answers 0 and computes something else. Positions lie section by section: time, y, x and
one more for models with M-RoPE, one section for all others.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.generation.row_layout import Embedding
    from backends.gguf.context import Context

_INT32_P = ctypes.POINTER(ctypes.c_int32)


class GgufEmbeddingPass:
    """See `backends.generation.decoder.EmbeddingPass`."""

    joins = False

    def __init__(self, context: Context, *, most_rows: int) -> None:
        """`most_rows`: of one pass, and of a medium whose rows see each other."""
        self._context = context
        self._most_rows = most_rows
        self._counts: NDArray[np.int32] = np.ones(most_rows, dtype=np.int32)
        self._slot: NDArray[np.int32] = np.zeros(1, dtype=np.int32)
        self._outputs: NDArray[np.int8] = np.zeros(most_rows, dtype=np.int8)
        one = self._slot.ctypes.data_as(_INT32_P)
        self._slots = (_INT32_P * most_rows)(*(one for _ in range(most_rows)))

    def decode(self, embedding: Embedding, first: int, count: int, *, slot: int, position: int) -> int:
        """See `backends.generation.decoder.EmbeddingPass`."""
        if not 0 < count <= self._most_rows:
            raise ValueError(f"{count} rows of a medium in one pass, at most {self._most_rows} are possible")
        rows = np.ascontiguousarray(embedding.rows[first : first + count])
        positions = np.ascontiguousarray(embedding.positions(position, first, count))
        self._slot[0] = slot
        batch = llama_cpp.llama_batch(
            n_tokens=count,
            token=None,
            embd=rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=positions.ctypes.data_as(_INT32_P),
            n_seq_id=self._counts.ctypes.data_as(_INT32_P),
            seq_id=ctypes.cast(self._slots, ctypes.POINTER(_INT32_P)),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        pointer = self._context.pointer
        self._context.use_adapter_of(slot)
        if embedding.alone:
            llama_cpp.llama_set_causal_attn(pointer, False)
        try:
            status: int = llama_cpp.llama_decode(pointer, batch)
        finally:
            if embedding.alone:
                llama_cpp.llama_set_causal_attn(pointer, True)
        if status == 0:
            self._context.finish()
        return status
