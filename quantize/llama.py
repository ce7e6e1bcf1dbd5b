"""A GGUF model in llama.cpp for this package's children: tokens, logits of a window, and what matrices are fed.

Owns the low-level calls. Nothing here serves requests; that is `backends.gguf`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from backends.files import model_files

EvalCallback = Callable[[Any, bool, Any], bool]


class Model:
    """One model with one context of `n_ctx` tokens; windows are computed from an empty memory each."""

    def __init__(self, path: Path, *, n_ctx: int, threads: int, watch: EvalCallback | None = None) -> None:
        model_files.check(path)
        self._log = llama_cpp.llama_log_callback(_warnings_only)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 999
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise OSError(f"llama.cpp cannot load {path.name}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = n_ctx
        settings.n_threads = settings.n_threads_batch = threads
        if watch is not None:
            self._watch = llama_cpp.ggml_backend_sched_eval_callback(watch)
            settings.cb_eval = self._watch
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise OSError(f"llama.cpp has no room for {path.name} with {n_ctx} tokens of context")
        self._batch = llama_cpp.llama_batch_init(n_ctx, 0, 1)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)

    @property
    def first_token(self) -> int | None:
        """What the model wants before every text."""
        return llama_cpp.llama_vocab_bos(self._vocab) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    def tokenize(self, text: str) -> list[int]:
        """No special tokens added; those the text spells are taken, as transformers does."""
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 16))()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, True)
        return list(buffer[: max(0, n)])

    def forget(self) -> None:
        """Empty the memory."""
        if (memory := llama_cpp.llama_get_memory(self._context)) is not None:
            llama_cpp.llama_memory_clear(memory, False)

    def decode(self, tokens: Sequence[int], *, at: int = 0, first_output: int = 0) -> npt.NDArray[np.float32]:
        """Logits from `first_output` on, `(len(tokens) - first_output, n_vocab)`: a view, valid until the next call."""
        for i, token in enumerate(tokens):
            self._batch.token[i], self._batch.pos[i], self._batch.n_seq_id[i] = token, at + i, 1
            self._batch.seq_id[i][0] = 0
            self._batch.logits[i] = 1 if i >= first_output else 0
        self._batch.n_tokens = len(tokens)
        code = llama_cpp.llama_decode(self._context, self._batch)
        if code != 0:
            raise OSError(f"llama_decode returned {code}")
        rows = len(tokens) - first_output
        view: npt.NDArray[np.float32] = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(self._context), (rows, self.n_vocab)
        )
        return view


def _warnings_only(level: int, text: bytes, data: Any) -> None:
    del data
    if level >= 4:
        sys.stderr.write(text.decode("utf-8", "replace"))


class GgmlTensor(ctypes.Structure):
    """The head of `struct ggml_tensor`, as far as the collector reads it (ggml 0.25)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Ggml:
    """The few functions of libggml that the collector needs."""

    def __init__(self) -> None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        library = next(path for path in sorted(folder.glob("*ggml-base*")) if path.suffix in {".so", ".dylib", ".dll"})
        base = ctypes.CDLL(str(library))
        self.op_name = base.ggml_op_desc
        self.op_name.restype, self.op_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self._get = base.ggml_backend_tensor_get
        self._get.restype, self._get.argtypes = (
            None,
            [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t],
        )
        self._n_bytes = base.ggml_nbytes
        self._n_bytes.restype, self._n_bytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]

    def read(self, pointer: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The numbers of a contiguous tensor, wherever they lie, flat."""
        data = np.empty(self._n_bytes(pointer) // np.dtype(dtype).itemsize, dtype)
        self._get(pointer, data.ctypes.data, 0, data.nbytes)
        return data
