"""llama.cpp as the tests ask it: logits of every position, embeddings, tokens; F32 cache, no flash attention."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


@contextmanager
def loaded(path: Path, *, embeddings: bool = False, n_ctx: int = 512) -> Iterator[tuple[Any, Any]]:
    """Model and context."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, "llama.cpp refuses the file"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = n_ctx
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0
    settings.flash_attn_type = 0
    settings.embeddings = embeddings
    context = llama_cpp.llama_init_from_model(model, settings)
    try:
        yield model, context
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def logits(model: Any, context: Any, tokens: list[int]) -> np.ndarray:
    """`(n_tokens, n_vocab)` float32."""
    _decode(context, tokens)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(tokens), n_vocab)).copy()


def embedding(model: Any, context: Any, tokens: list[int]) -> np.ndarray:
    """The pooled vector."""
    _decode(context, tokens)
    return np.ctypeslib.as_array(
        llama_cpp.llama_get_embeddings_seq(context, 0), (llama_cpp.llama_model_n_embd(model),)
    ).copy()


def _decode(context: Any, tokens: list[int]) -> None:
    memory = llama_cpp.llama_get_memory(context)
    if memory:
        llama_cpp.llama_memory_clear(memory, True)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    batch.n_tokens = len(tokens)
    assert llama_cpp.llama_decode(context, batch) == 0
    llama_cpp.llama_batch_free(batch)


def tokenize(model: Any, text: str, *, special: bool = False) -> list[int]:
    """Ids as llama.cpp makes them."""
    data = text.encode()
    buffer = (llama_cpp.llama_token * (len(data) + 16))()
    vocab = llama_cpp.llama_model_get_vocab(model)
    n = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), special, True)
    return list(buffer[:n])
