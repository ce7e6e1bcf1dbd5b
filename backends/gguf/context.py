"""The llama.cpp context of a generating model: its cells, its passes, its states.

Owns its pointer, the persistent batch and the numpy views over both. Decides nothing.
"""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any, Protocol

import llama_cpp
import numpy as np

from backends.engine import LoadError
from backends.generation.decoder import FULL, INTERRUPTED
from backends.gguf import threads
from backends.gguf.context_params import PASSES, context_params
from backends.gguf.library_log import explain, is_out_of_memory
from backends.gguf.sampling import Sampler
from backends.messages.plans import whole_blocks
from backends.plan import SCORED_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backends.generation.decoder import EmbeddingPass
    from backends.gguf.library_log import LibraryLog
    from backends.gguf.model import Model
    from backends.messages import KvLayout, KvOffload, KvTypes, Sampling

_INT32_P = ctypes.POINTER(ctypes.c_int32)


class Follower(Protocol):
    """What goes along with a context."""

    def follow(self, n_rows: int) -> None:
        """The first rows of its batch are computed."""
        ...

    def clear(self, slot: int) -> None:
        """A slot is empty."""
        ...


class Context:
    """The KV cells and buffers of one model: `parallel` sequences of up to `context` tokens each.

    Split, every sequence has a stream of cells to itself; unified, all share a pool of `kv_tokens`.
    Raises LoadError when the memory for it cannot be had.
    """

    def __init__(
        self,
        model: Model,
        *,
        context: int,
        parallel: int,
        kv_type: KvTypes,
        max_batch: int,
        n_threads: int,
        log: LibraryLog,
        layout: KvLayout = "split",
        kv_tokens: int = 0,
        kv_offload: KvOffload = "card",
        copies_cells: bool = False,
        fewer_threads: bool = False,
    ) -> None:
        """`max_batch`: tokens of one pass; a batch may be several. `copies_cells`: one sequence becomes another's copy
        where the cells are, instead of through host memory. `fewer_threads`: while that is
        faster; see `threads`.
        """
        self._model = model
        self.max_batch = PASSES * max(max_batch, parallel)
        self.layout: KvLayout = layout
        self.shortage = FULL
        self.embeddings: EmbeddingPass | None = None
        self.follower: Follower | None = None
        """Is told of every batch, and of every slot that is emptied or given another's cells."""
        self.cells_per_sequence = whole_blocks(context)
        self.forgets = model.carries_state or 0 < model.n_window < self.cells_per_sequence
        self.splits = not model.is_recurrent
        self.cuts_back = not model.carries_state
        self.counts_rows = False
        self._copies_cells = copies_cells
        self._choice = threads.ThreadChoice(n_threads) if fewer_threads and n_threads > 1 else None
        self._n_threads, self._waited_ns = n_threads, 0
        self.one_adapter = True
        self._adapters: dict[str, int] = {}
        self._adapter_of: dict[int, str] = {}
        """By slot, of those that have one."""
        self._adapter = ""
        """The one that the next pass computes with."""
        self.stop_flag = None if self.forgets else np.zeros(2, np.uint8)
        """The second byte stays 0."""
        self._lazy: set[int] = set()
        """Slots whose cells llama.cpp fills only with the next decode: until then their state is not theirs."""
        params = self.params = context_params(
            context=context,
            parallel=parallel,
            kv_type=kv_type,
            max_batch=max_batch,
            n_threads=n_threads,
            layout=layout,
            kv_tokens=kv_tokens,
            kv_offload=kv_offload,
        )
        """As it was made; another context of the model is made alike."""
        self.n_cells = int(params.n_ctx)
        pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise LoadError(explain(log), out_of_memory=is_out_of_memory(log))
        self.pointer: int = pointer
        if self.stop_flag is not None:
            llama_cpp.llama_set_abort_callback(pointer, _is_set(), self.stop_flag.ctypes.data)
        self._memory = llama_cpp.llama_get_memory(pointer)
        self._max_outputs = parallel + SCORED_ROWS
        self._logits_address = 0
        self._logits: NDArray[np.float32] = np.empty((0, model.n_vocab), dtype=np.float32)
        self._batch = self._own_batch()

    def _own_batch(self) -> llama_cpp.llama_batch:
        """A batch whose arrays are numpy's, made once: filling it costs no ctypes call."""
        rows = self.max_batch
        self.tokens: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.positions: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.sequences: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.outputs: NDArray[np.int8] = np.zeros(rows, dtype=np.int8)
        self._counts: NDArray[np.int32] = np.ones(rows, dtype=np.int32)
        stride = self.sequences.itemsize
        self._rows = (ctypes.POINTER(ctypes.c_int32) * rows)(
            *(ctypes.cast(self.sequences.ctypes.data + row * stride, _INT32_P) for row in range(rows))
        )
        return llama_cpp.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(_INT32_P),
            embd=None,
            pos=self.positions.ctypes.data_as(_INT32_P),
            n_seq_id=self._counts.ctypes.data_as(_INT32_P),
            seq_id=ctypes.cast(self._rows, ctypes.POINTER(_INT32_P)),
            logits=self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self.pointer)

    def warm_up(self, n_tokens: int = 1) -> float:
        """Compute some tokens and forget them, so that weights are paged in and buffers exist before the first request.

        A whole batch brings the pools that a GPU backend grows on demand to their full size. Seconds it took.
        """
        n = min(n_tokens, self.max_batch, self.cells_per_sequence)
        self.tokens[:n] = self.sequences[:n] = self.outputs[:n] = 0
        self.positions[:n] = range(n)
        self.outputs[n - 1] = 1
        began = time.perf_counter()
        if self.decode(n) != 0:
            raise LoadError("the model loads, but its first forward pass fails")
        took_s = time.perf_counter() - began
        self.clear(0)
        return took_s

    def decode(self, n_tokens: int, *, decoding: bool = False) -> int:
        """Compute the first `n_tokens` rows of the batch; llama.cpp's status (0 ok, 1 no room, 2 stopped, < 0 fatal).

        It is done on return, so that its duration means something on a GPU too.
        """
        self._batch.n_tokens = n_tokens
        if self._adapters:
            self.use_adapter_of(int(self.sequences[0]))
        if self._choice is None:
            return self._decode()
        self._use(self._choice.next(n_tokens))
        began = time.perf_counter_ns()
        status = self._decode()
        self._choice.learn(n_tokens, (time.perf_counter_ns() - began) / 1000, whole=status == 0)
        if self._choice.asks:
            waited_ns = threads.waited_ns()
            self._choice.crowded((waited_ns - self._waited_ns) / 1000)
            self._waited_ns = waited_ns
        return status

    def take_adapters(self, pointers: Mapping[str, int]) -> None:
        """llama.cpp's adapters of the model, by name."""
        self._adapters = dict(pointers)

    def adapt(self, slot: int, adapter: str) -> None:
        """See `DecoderContext`."""
        if adapter:
            self._adapter_of[slot] = adapter
        else:
            self._adapter_of.pop(slot, None)

    def use_adapter_of(self, slot: int) -> None:
        """Compute the next passes with a slot's adapter. Raises RuntimeError."""
        adapter = self._adapter_of.get(slot, "")
        if adapter == self._adapter:
            return
        pointers = (ctypes.c_void_p * 1)(self._adapters[adapter]) if adapter else None
        cast = ctypes.cast(pointers, ctypes.POINTER(llama_cpp.llama_adapter_lora_p_ctypes)) if pointers else None
        status = llama_cpp.llama_set_adapters_lora(
            self.pointer, cast, 1 if adapter else 0, (ctypes.c_float * 1)(1.0) if adapter else None
        )
        if status != 0:
            raise RuntimeError(f"llama.cpp does not take adapter {adapter!r}: status {status}")
        self._adapter = adapter

    def first_logits(self) -> NDArray[np.float32]:
        """`(n_vocab,) float32`: what a token at the beginning of slot 0 gives, which is forgotten again."""
        self.warm_up(1)
        found: NDArray[np.float32] = self.logits(1)[0].copy()
        return found

    def _use(self, n_threads: int) -> None:
        if n_threads != self._n_threads:
            self._n_threads = n_threads
            llama_cpp.llama_set_n_threads(self.pointer, n_threads, n_threads)

    def _decode(self) -> int:
        status: int = llama_cpp.llama_decode(self.pointer, self._batch)
        if status in (0, INTERRUPTED):
            self.finish()
        if status == 0 and self.follower is not None:
            self.follower.follow(self._batch.n_tokens)
        return status

    def finish(self) -> None:
        """Wait until what was begun is done."""
        llama_cpp.llama_synchronize(self.pointer)
        self._lazy.clear()

    def logits(self, n_outputs: int) -> NDArray[np.float32]:
        """`(n_outputs, n_vocab) float32`: a writable view of the last decode's outputs, in batch order."""
        pointer = llama_cpp.llama_get_logits(self.pointer)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address:  # a view costs 50 us to make, and the buffer seldom moves
            self._logits_address = address
            self._logits = np.ctypeslib.as_array(pointer, (self._max_outputs, self._model.n_vocab))
        return self._logits[:n_outputs]

    def sampler(self, sampling: Sampling, *, prompt: Sequence[int], choice: int) -> Sampler:
        """A chain of samplers for one choice; `prompt` is what a repetition penalty has seen."""
        return Sampler(sampling, model=self._model, context=self.pointer, prompt=prompt, choice=choice)

    def clear(self, slot: int) -> None:
        """Drop everything a sequence holds."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._lazy.discard(slot)
        if self.follower is not None:
            self.follower.clear(slot)

    def least(self, slot: int) -> int:
        """The shortest prefix that a saved state can be cut to: llama.cpp writes no cells that a window has left."""
        length = self._length(slot)
        return length if self._model.carries_state or 0 < self._model.n_window < length else 0

    def least_shared(self, slot: int) -> int:
        """The shortest prefix of a sequence that `share` can give without a checkpoint."""
        return self.least(slot) if self._copies_through_host else self._least_here(slot)

    def _least_here(self, slot: int) -> int:
        """The shortest prefix that the cells of a sequence can be cut to."""
        if self._model.carries_state:
            return self._length(slot)
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, slot) if self._model.n_window else 0
        return 0 if first <= 0 else int(first) + self._model.n_window

    @property
    def _copies_through_host(self) -> bool:
        return self.layout == "split" and not self._copies_cells

    def _length(self, slot: int) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def trim(self, slot: int, length: int) -> bool:
        """Keep the first `length` positions of a sequence; False where its model cannot be cut there."""
        if self._model.n_window and length == self._length(slot):
            return True
        return self._least_here(slot) <= length and bool(llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1))

    def share(self, source: int, target: int, length: int, *, checkpoint: NDArray[np.uint8] | None = None) -> bool:
        """Give the empty `target` the first `length` positions of `source`, where it had a checkpoint or can be cut;
        False where that cannot be.
        """
        if self.layout == "unified":
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)
        elif self._copies_cells and checkpoint is None:  # between streams only whole sequences can be copied
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._lazy.add(target)
        else:
            state = self.save(source)
            if state is None or not self.restore(target, state):
                return False
        return self.trim(target, length) if checkpoint is None else self.go_back(target, checkpoint, length)

    def state_bytes(self, slot: int, *, partial: bool = False) -> int:
        """What `save_into` needs."""
        return int(llama_cpp.llama_state_seq_get_size_ext(self.pointer, slot, _flags(partial)))

    def save_into(self, slot: int, target: NDArray[np.uint8], *, partial: bool = False) -> bool:
        """Write a sequence's state, or a checkpoint, into `(state_bytes,) uint8`; False where it does not fit or is
        not there yet.
        """
        if slot in self._lazy:
            return False
        written = llama_cpp.llama_state_seq_get_data_ext(
            self.pointer, _bytes_pointer(target), target.size, slot, _flags(partial)
        )
        return bool(written == target.size)

    def save(self, slot: int) -> NDArray[np.uint8] | None:
        """The state of one sequence, in host memory; None while it is not there yet."""
        state = np.empty(self.state_bytes(slot), dtype=np.uint8)
        return state if self.save_into(slot, state) else None

    def restore(self, slot: int, state: NDArray[np.uint8]) -> bool:
        """Put a saved state into an empty sequence; False, and the sequence stays empty, when llama.cpp refuses it."""
        done = bool(llama_cpp.llama_state_seq_set_data(self.pointer, _bytes_pointer(state), state.size, slot))
        if not done:
            self.clear(slot)
        return done

    def go_back(self, slot: int, checkpoint: NDArray[np.uint8], length: int) -> bool:
        """Cut a sequence to the `length` positions of a checkpoint; False, and it is empty, when llama.cpp refuses."""
        read = llama_cpp.llama_state_seq_set_data_ext(
            self.pointer, _bytes_pointer(checkpoint), checkpoint.size, slot, _flags(True)
        )
        if not read or not llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1):
            self.clear(slot)
            return False
        return True


def _is_set() -> Any:
    """Whether the first of two bytes is set, the second being 0: their length as a string.

    llama.cpp asks it between any two operations, so it is C: a function of Python's would wait for the interpreter.
    """
    address = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
    return llama_cpp.ggml_abort_callback(address)


def _flags(partial: bool) -> int:
    return int(llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) if partial else 0


def _bytes_pointer(array: NDArray[np.uint8]) -> ctypes._Pointer[ctypes.c_uint8]:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
