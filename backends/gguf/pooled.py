"""A llama.cpp context that gives one vector (or the scores of a head) per sequence, instead of logits.

Owns pointers, the batch and what llama.cpp asks of embedding models: an encoder's pass is one whole micro-batch, a
decoder's cells are dropped after it. Decides nothing about jobs.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

import llama_cpp
import numpy as np

from backends.engine import LoadError
from backends.gguf.context_params import GGML_KV_TYPE, ContextSizes
from backends.gguf.info import ENCODERS
from backends.gguf.library_log import explain, is_out_of_memory
from backends.gguf.passes import batch_tokens, input_limit
from backends.messages.plans import whole_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.gguf.library_log import LibraryLog
    from backends.gguf.model import Model

SEQUENCES: Final = 64
"""Inputs of one pass at most."""
_SHORT_TOKENS: Final = 32
"""Up to here a pass is a short one."""
_FLOAT_BYTES: Final = 4
_INT32_P = ctypes.POINTER(ctypes.c_int32)
_RANK: Final = llama_cpp.LLAMA_POOLING_TYPE_RANK
_LAST: Final = llama_cpp.LLAMA_POOLING_TYPE_LAST


def gives_vectors(model: Model) -> bool:
    """Whether the file says that it is an embedding model or a reranker."""
    return is_encoder(model) or _pooling(model) > llama_cpp.LLAMA_POOLING_TYPE_NONE


def is_encoder(model: Model) -> bool:
    """Every token sees all others, and nothing is kept between passes."""
    return model.metadata("general.architecture") in ENCODERS


def _pooling(model: Model) -> int:
    told = model.metadata(f"{model.metadata('general.architecture')}.pooling_type")
    return int(told) if told is not None and told.lstrip("-").isdecimal() else -1


class PooledContext:
    """Raises LoadError when the memory for it cannot be had."""

    def __init__(
        self,
        model: Model,
        *,
        context: int,
        pass_tokens: int,
        threads: int,
        short_threads: int,
        log: LibraryLog,
    ) -> None:
        """`pass_tokens` is what a pass holds where one input is not longer; short passes have threads of their own."""
        self._threads, self._short_threads = threads, short_threads
        self.limit = input_limit(context, model.n_ctx_train)
        self.max_batch = batch_tokens(self.limit, pass_tokens, in_pieces=_tells_at_the_end(model))
        params = _params(model, self.limit, max_batch=self.max_batch, threads=threads)
        pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise LoadError(explain(log), out_of_memory=is_out_of_memory(log))
        self.pointer: int = pointer
        self._memory = llama_cpp.llama_get_memory(pointer)
        self.reranks: bool = llama_cpp.llama_pooling_type(pointer) == _RANK
        self.width: int = _width(model, reranks=self.reranks)
        self.output_bytes = _output_bytes(model, self.max_batch)
        self._rows = np.empty((SEQUENCES, self.width), dtype=np.float32)
        self._batch = self._own_batch()

    def _own_batch(self) -> llama_cpp.llama_batch:
        """A batch whose arrays are numpy's, made once: filling it costs no ctypes call."""
        n = self.max_batch
        self._tokens = np.zeros(n, dtype=np.int32)
        self._positions = np.zeros(n, dtype=np.int32)
        self._sequences = np.zeros(n, dtype=np.int32)
        self._outputs = np.ones(n, dtype=np.int8)
        self._counts = np.ones(n, dtype=np.int32)
        address, stride = self._sequences.ctypes.data, self._sequences.itemsize
        self._places = (_INT32_P * n)(*(ctypes.cast(address + row * stride, _INT32_P) for row in range(n)))
        return llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(_INT32_P),
            embd=None,
            pos=self._positions.ctypes.data_as(_INT32_P),
            n_seq_id=self._counts.ctypes.data_as(_INT32_P),
            seq_id=ctypes.cast(self._places, ctypes.POINTER(_INT32_P)),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self.pointer)

    def encode(self, inputs: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """`(len(inputs), width) float32`, a view until the next call; at most `SEQUENCES` inputs.

        Together they have at most `max_batch` tokens; a decoder that reads the last one takes one input of any length.
        """
        try:
            if len(inputs) == 1 and inputs[0].size > self.max_batch:
                self._read_long(inputs[0])
            else:
                self._run(inputs)
            n_bytes, target = self.width * _FLOAT_BYTES, self._rows.ctypes.data
            for sequence in range(len(inputs)):
                source = llama_cpp.llama_get_embeddings_seq(self.pointer, sequence)
                ctypes.memmove(target + sequence * n_bytes, source, n_bytes)
        finally:
            if self._memory:
                llama_cpp.llama_memory_clear(self._memory, False)
        return self._rows[: len(inputs)]

    def _run(self, inputs: Sequence[NDArray[np.int32]]) -> None:
        end = 0
        for sequence, ids in enumerate(inputs):
            start, end = end, end + ids.size
            self._tokens[start:end] = ids
            self._positions[start:end] = np.arange(ids.size, dtype=np.int32)
            self._sequences[start:end] = sequence
        self._outputs[:end] = 1
        self._compute(end)

    def _read_long(self, ids: NDArray[np.int32]) -> None:
        """Piece by piece into the cells, the last piece with the output: buffers need not be as long as the context."""
        llama_cpp.llama_set_embeddings(self.pointer, False)
        last = (ids.size - 1) // self.max_batch * self.max_batch
        for start in range(0, last + 1, self.max_batch):
            piece = ids[start : start + self.max_batch]
            if start == last:
                llama_cpp.llama_set_embeddings(self.pointer, True)
            self._tokens[: piece.size] = piece
            self._positions[: piece.size] = np.arange(start, start + piece.size, dtype=np.int32)
            self._sequences[: piece.size] = 0
            self._outputs[: piece.size] = start == last
            self._compute(piece.size)

    def _compute(self, n_tokens: int) -> None:
        self._batch.n_tokens = n_tokens
        threads = self._short_threads if n_tokens <= _SHORT_TOKENS else self._threads
        llama_cpp.llama_set_n_threads(self.pointer, threads, threads)
        run = llama_cpp.llama_decode if self._memory else llama_cpp.llama_encode
        status = run(self.pointer, self._batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp computes no embedding: status {status}")


def dry_pooled(model: Model, *, context: int, pass_tokens: int) -> ContextSizes:
    """The sizes of such a context on a dry model, its output buffer at its largest. Raises LoadError."""
    log = model.log
    log.lines.clear()
    limit = input_limit(context, model.n_ctx_train)
    max_batch = batch_tokens(limit, pass_tokens, in_pieces=_tells_at_the_end(model))
    params = _params(model, limit, max_batch=max_batch, threads=1)
    pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    if not pointer:
        raise LoadError(explain(log))
    llama_cpp.llama_free(pointer)
    output = dict.fromkeys(log.buffers("output"), _output_bytes(model, max_batch))
    return ContextSizes(cache=log.cache_bytes(), compute=log.buffers("compute"), output=output)


def _params(model: Model, limit: int, *, max_batch: int, threads: int) -> llama_cpp.llama_context_params:
    """The one place where such a context is configured, so that a dry one has the sizes of the real one."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = whole_blocks(max(limit, max_batch))
    params.n_batch = params.n_ubatch = params.n_outputs_max = max_batch
    params.n_seq_max = SEQUENCES
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = GGML_KV_TYPE["f16"]
    params.embeddings = True
    params.kv_unified = True  # else a decoder's pass is cut into steps of equal lengths
    params.swa_full = True  # what a pass needs may leave no window
    params.no_perf = True
    if is_encoder(model) and _pooling(model) <= llama_cpp.LLAMA_POOLING_TYPE_NONE:
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_MEAN  # as sentence-transformers takes a bare encoder
    return params


def _tells_at_the_end(model: Model) -> bool:
    """See `backends.gguf.info.HeaderInfo.tells_at_the_end`."""
    causal = model.metadata(f"{model.metadata('general.architecture')}.attention.causal") != "false"
    return causal and _pooling(model) in (_LAST, _RANK) and not is_encoder(model)


def _width(model: Model, *, reranks: bool) -> int:
    count = llama_cpp.llama_model_n_cls_out if reranks else llama_cpp.llama_model_n_embd_out
    return int(count(model.pointer))


def _output_bytes(model: Model, max_batch: int) -> int:
    """llama.cpp keeps room for logits and a vector of every token of the largest pass so far, in host memory."""
    return max_batch * (model.n_vocab + int(llama_cpp.llama_model_n_embd_out(model.pointer))) * _FLOAT_BYTES


def tokenize(model: Model, text: str) -> list[int]:
    """The tokens of a whole text as the model was trained on it: with CLS and SEP, BOS and EOS, or none."""
    if model.splits_words:
        first, _, last = pair_frame(model)
        return [*first, *model.tokenize(text, parse_special=False), *last]
    tokens = model.library_tokens(text, parse_special=False, add_special=True)
    first, _, last = pair_frame(model)
    end = len(tokens) - len(last)
    return [*tokens[: len(first)], *model.plain(tokens[len(first) : end]), *tokens[end:]]


def pair_frame(model: Model) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before, between and behind the two texts of a pair: `[CLS] a [SEP] b [SEP]` and its kin."""
    vocab = model.vocab
    bos, eos, sep = (
        [token] if adds and token >= 0 else []
        for adds, token in (
            (llama_cpp.llama_vocab_get_add_bos(vocab), llama_cpp.llama_vocab_bos(vocab)),
            (llama_cpp.llama_vocab_get_add_eos(vocab), llama_cpp.llama_vocab_eos(vocab)),
            (llama_cpp.llama_vocab_get_add_sep(vocab), llama_cpp.llama_vocab_sep(vocab)),
        )
    )
    if is_word_piece(model):
        return bos, sep, sep
    return bos, eos + sep, eos


def is_word_piece(model: Model) -> bool:
    """BERT's kind of vocabulary."""
    return bool(llama_cpp.llama_vocab_type(model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_WPM)
