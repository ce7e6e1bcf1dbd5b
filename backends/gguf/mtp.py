"""The layer of a model that predicts the token after the next one, as a drafter: a second llama.cpp context over it.

What the model has computed of each row goes into that layer together with the row's next token. So it has to see every
batch of the model's context; rows wait here until there are many, or until something is to be drafted. llama.cpp calls
this MTP; its own server does the same (common/speculative.cpp, draft-mtp).
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp_ext

from backends.engine import LoadError
from backends.generation.draft_model import likeliest
from backends.generation.row_layout import TEXT_ALONE
from backends.gguf.library_log import explain, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Items

    from numpy.typing import NDArray

    from backends.generation.sequence import Sequence
    from backends.gguf.context import Context
    from backends.gguf.model import Model

_INT32_P = ctypes.POINTER(ctypes.c_int32)
_MOST_WAITING: Final = 256
"""Rows of one sequence that wait before they are computed."""
_KEPT_ROWS: Final = 17
"""Of the newest rows what the model has computed is kept: a draft may go back as far."""
_NEWEST_SHARE: Final = 0.1
_MOST_SURPRISE: Final = 2.0


class _Rows(NamedTuple):
    """Rows of one sequence that follow each other."""

    first: int
    """Position."""
    tokens: NDArray[np.int32]
    before: NDArray[np.float32]
    """`(n, n_embd) float32`: what the model has computed of the row before each."""


class Mtp:
    """See the module's text. A drafter for `backends.generation.speculation`."""

    drafter = "mtp"
    pooled = False

    def __init__(self, model: Model, context: Context, params: llama_cpp.llama_context_params) -> None:
        """`params` are those of the model's own context. Raises LoadError."""
        params.ctx_type, params.ctx_other = llama_cpp.LLAMA_CONTEXT_TYPE_MTP, context.pointer
        pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise LoadError(explain(model.log), out_of_memory=is_out_of_memory(model.log))
        self._pointer: int = pointer
        self._memory = llama_cpp.llama_get_memory(pointer)
        self._target, self._width, self._n_vocab = context, model.width, model.n_vocab
        llama_cpp_ext.llama_set_embeddings_nextn(context.pointer, True, False)
        llama_cpp_ext.llama_set_embeddings_nextn(pointer, True, True)
        rows = int(params.n_batch)
        self._tokens, self._positions = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        self._sequences, self._counts = np.zeros(rows, np.int32), np.ones(rows, np.int32)
        self._outputs, self._before = np.zeros(rows, np.int8), np.zeros((rows, self._width), np.float32)
        self._batch = self._own_batch(rows)
        self._waiting: dict[int, list[_Rows]] = {}
        self._newest: dict[int, tuple[int, NDArray[np.float32]]] = {}
        """By slot, the position of the first row that is kept, and what the model has computed of each."""
        self.step_us = 0.0
        context.follower = self
        self.step_us = self._tried_us()

    def _own_batch(self, rows: int) -> llama_cpp.llama_batch:
        stride = self._sequences.itemsize
        self._ids = (_INT32_P * rows)(
            *(ctypes.cast(self._sequences.ctypes.data + row * stride, _INT32_P) for row in range(rows))
        )
        return llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(_INT32_P),
            embd=self._before.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=self._positions.ctypes.data_as(_INT32_P),
            n_seq_id=self._counts.ctypes.data_as(_INT32_P),
            seq_id=ctypes.cast(self._ids, ctypes.POINTER(_INT32_P)),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def _tried_us(self) -> float:
        """What a row takes; the second one, because the first makes buffers. Raises RuntimeError."""
        nothing = np.zeros((1, self._width), np.float32)
        for position in range(2):
            began = time.perf_counter_ns()
            self._compute([(0, position, np.zeros(1, np.int32), nothing)], logits=True)
        took_us = (time.perf_counter_ns() - began) / 1000
        self.clear(0)
        return took_us

    def close(self) -> None:
        """Free the context; the model's own goes on without."""
        self._target.follower = None
        llama_cpp_ext.llama_set_embeddings_nextn(self._target.pointer, False, False)
        llama_cpp.llama_free(self._pointer)

    # What the model's context tells

    def follow(self, n_rows: int) -> None:
        """The first rows of the context's batch are computed."""
        context = self._target
        found = llama_cpp_ext.llama_get_embeddings_nextn(context.pointer)
        computed = np.ctypeslib.as_array(found, (n_rows, self._width))
        slots = context.sequences[:n_rows]
        borders = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), n_rows]
        for begin, end in itertools.pairwise(borders):
            self._take(int(slots[begin]), int(context.positions[begin]), begin, end, computed)

    def _take(self, slot: int, first: int, begin: int, end: int, computed: NDArray[np.float32]) -> None:
        """Rows of one slot, from a position on."""
        waiting = self._cut(slot, first)
        before = np.concatenate([self._of(slot, first - 1), computed[begin : end - 1]])
        waiting.append(_Rows(first, self._target.tokens[begin:end].copy(), before))
        kept = computed[max(begin, end - _KEPT_ROWS) : end].copy()
        self._newest[slot] = first + (end - begin) - len(kept), kept
        if sum(rows.tokens.size for rows in waiting) > _MOST_WAITING:
            self._keep_up(slot)

    def _keep_up(self, slot: int) -> None:
        """Compute what waits; where that fails the slot has no drafts, and the model's own step goes on."""
        try:
            self._catch_up(slot)
        except RuntimeError as error:
            sys.stderr.write(f"the layer that predicts failed, and an answer goes on without: {error}\n")
            sys.stderr.flush()
            self.clear(slot)

    def _cut(self, slot: int, length: int) -> list[_Rows]:
        """Forget what is not of a slot's first positions: drafts, and rows that did not come true; what waits."""
        waiting = [rows for rows in self._waiting.get(slot, []) if rows.first < length]
        if waiting and (rows := waiting[-1]).first + rows.tokens.size > length:
            n = length - rows.first
            waiting[-1] = _Rows(rows.first, rows.tokens[:n], rows.before[:n])
        llama_cpp.llama_memory_seq_rm(self._memory, slot, waiting[0].first if waiting else length, -1)
        self._waiting[slot] = waiting
        return waiting

    def _of(self, slot: int, position: int) -> NDArray[np.float32]:
        """`(1, n_embd) float32`: what the model has computed at a position; zeros where that is not known."""
        first, kept = self._newest.get(slot, (0, np.empty((0, self._width), np.float32)))
        at = position - first
        return kept[at : at + 1] if 0 <= at < len(kept) else np.zeros((1, self._width), np.float32)

    def clear(self, slot: int) -> None:
        """The slot's cells are dropped, or hold another text."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._waiting.pop(slot, None)
        self._newest.pop(slot, None)

    # Drafting

    def keep_only(self, slots: Items[int]) -> None:
        """Slots hold nothing that others could use."""

    def takes(self, sequence: Sequence) -> bool:
        """Whether what the model has computed of its last row is known."""
        first, kept = self._newest.get(sequence.slot, (0, ()))
        return sequence.request.layout is TEXT_ALONE and first <= sequence.n_past - 1 < first + len(kept)

    def most(self, sequence: Sequence) -> int:
        """As many as the cells have room for."""
        return self._target.cells_per_sequence - sequence.n_past - 1

    def is_behind(self, sequence: Sequence) -> bool:
        """It follows every step."""
        return False

    def catch_up_us(self, sequence: Sequence) -> float:
        """See `is_behind`."""
        return 0.0

    def catch_up(self, sequence: Sequence, *, within_us: float) -> float:
        """See `is_behind`."""
        return 0.0

    def draft(
        self, wanted: Iterable[tuple[Sequence, int]], goes_on: Callable[[Sequence, int, float], bool]
    ) -> tuple[dict[int, list[int]], float]:
        """See `backends.generation.draft_model.TokenDrafter`."""
        began, n_steps = time.perf_counter_ns(), 0
        asked = {sequence.slot: (sequence, most) for sequence, most in wanted}
        found: dict[int, list[int]] = {slot: [] for slot in asked}
        rows = []
        for slot, (sequence, _) in sorted(asked.items()):
            rows.append(self._first_rows(slot, sequence))
        while rows:
            logits, computed = self._compute(rows, logits=True)
            n_steps += 1
            going = []
            for at, (slot, first, tokens, _) in enumerate(rows):
                sequence, most = asked[slot]
                token, margin = likeliest(logits[at])
                if not goes_on(sequence, token, margin):
                    continue
                found[slot].append(token)
                if len(found[slot]) < most:
                    going.append((slot, first + tokens.size, np.array([token], np.int32), computed[at : at + 1]))
            rows = going
        took_us = (time.perf_counter_ns() - began) / 1000
        if n_steps:
            told = min(took_us / n_steps, _MOST_SURPRISE * self.step_us)
            self.step_us += _NEWEST_SHARE * (told - self.step_us)
        return found, took_us

    def _first_rows(self, slot: int, sequence: Sequence) -> tuple[int, int, NDArray[np.int32], NDArray[np.float32]]:
        """The row from which a draft begins, behind the few that wait: one pass takes less than two.

        No more than `speculation.MOST_ROWS` sequences draft at once, so that these rows fit into a batch.
        """
        past = sequence.n_past
        waiting = self._cut(slot, past)
        own = _Rows(past, np.array([sequence.token], np.int32), self._of(slot, past - 1))
        if sum(rows.tokens.size for rows in waiting) > _KEPT_ROWS:
            self._catch_up(slot)
            waiting = []
        together = [*waiting, own]
        self._waiting.pop(slot, None)
        tokens = np.concatenate([rows.tokens for rows in together])
        return slot, together[0].first, tokens, np.concatenate([rows.before for rows in together])

    def _catch_up(self, slot: int) -> None:
        """Compute what waits."""
        for rows in self._waiting.pop(slot, []):
            self._compute([(slot, rows.first, rows.tokens, rows.before)], logits=False)

    def _compute(
        self, rows: list[tuple[int, int, NDArray[np.int32], NDArray[np.float32]]], *, logits: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rows of some slots, from a position on; logits and what was computed of each one's last. RuntimeError."""
        at, lasts = 0, []
        for slot, position, tokens, before in rows:
            end = at + tokens.size
            self._tokens[at:end], self._before[at:end] = tokens, before
            self._positions[at:end], self._sequences[at:end] = range(position, position + tokens.size), slot
            self._outputs[at:end] = 0
            self._outputs[end - 1] = logits
            lasts.append(end - 1)
            at = end
        self._batch.n_tokens = at
        if (status := llama_cpp.llama_decode(self._pointer, self._batch)) != 0:
            raise RuntimeError(f"the predicting layer's pass over {at} rows failed with status {status}")
        llama_cpp.llama_synchronize(self._pointer)
        if not logits:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._pointer), (len(rows), self._n_vocab)).copy()
        computed = [
            np.ctypeslib.as_array(llama_cpp_ext.llama_get_embeddings_nextn_ith(self._pointer, row), (self._width,))
            for row in lasts
        ]
        return found, np.stack(computed)
