"""The weights and the vocabulary of a GGUF file as llama.cpp has loaded them: pieces, marks, metadata.

Owns the model's pointer. What computes with it is `context` or `pooled`.
"""

from __future__ import annotations

import ctypes
import re
from functools import cached_property
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml

from backends.engine import LoadError
from backends.files import model_files
from backends.gguf import fragments
from backends.gguf.info import ENCODERS
from backends.gguf.library_log import explain, is_out_of_memory
from backends.gguf.load_mode import files_of
from backends.prompts.control import Control, PlainText, looks_like_one
from backends.prompts.fim import InfillMarks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.generation.media import MediaTower
    from backends.gguf.library_log import LibraryLog
    from backends.gguf.load_mode import LoadMode

_ALL_LAYERS = 1 << 30
_MODES = {
    "mmap": llama_cpp.LLAMA_LOAD_MODE_MMAP,
    "direct": llama_cpp.LLAMA_LOAD_MODE_DIRECT_IO,
    "lock": llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
}
_UNKNOWN = {
    llama_cpp.LLAMA_VOCAB_TYPE_SPM: 0,
    llama_cpp.LLAMA_VOCAB_TYPE_UGM: 2,
    llama_cpp.LLAMA_VOCAB_TYPE_WPM: 100,
}
"""What text without a token becomes where the file does not tell it."""


class Model:
    """Weights and vocabulary. Raises LoadError when llama.cpp refuses the file."""

    tower: MediaTower | None = None
    """None: it reads text alone."""

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int,
        log: LibraryLog,
        progress: Callable[[float], None] = lambda _: None,
        dry: bool = False,
        mode: LoadMode = "mmap",
        host_tensors: Sequence[str] = (),
        mtp: bool = False,
    ) -> None:
        """Negative `gpu_layers` mean all. `host_tensors` are regular expressions over the names of weights that stay in
        host memory. With `mtp` layers that predict further tokens are loaded too. With `dry` no weights are read and no
        memory is taken; contexts on it only tell their sizes.
        """
        self.log = log
        self.path = path
        self.identity = repr(model_files.statuses_of(files_of(path)))  # before they are read
        try:
            model_files.check(path)
        except model_files.FileError as error:
            raise LoadError(str(error)) from None
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else _ALL_LAYERS
        params.load_mode = _MODES[mode]
        params.load_mtp = mtp
        if dry:
            params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE

        self._overrides = host_overrides(host_tensors)
        """Kept as long as the model: llama.cpp may look at the names again."""
        if host_tensors:
            params.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)

        def report(fraction: float, _: object) -> bool:
            progress(fraction)
            return True

        self._progress = llama_cpp.llama_progress_callback(report)
        params.progress_callback = self._progress
        pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not pointer:
            raise LoadError(explain(log), out_of_memory=is_out_of_memory(log))
        self.pointer: int = pointer
        self.vocab: int = llama_cpp.llama_model_get_vocab(pointer)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.n_layers: int = llama_cpp.llama_model_n_layer(pointer)
        self.n_predicting: int = llama_cpp.llama_model_n_layer_nextn(pointer) if mtp else 0
        """Layers that predict further tokens, of those that are loaded."""
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(pointer)
        self.width: int = llama_cpp.llama_model_n_embd(pointer)
        """Of its rows."""
        self.n_bytes: int = llama_cpp.llama_model_size(pointer)
        self.n_window: int = llama_cpp.llama_model_n_swa(pointer)
        """Tokens that layers with a sliding window look back; 0 without such layers."""
        self.is_recurrent = bool(llama_cpp.llama_model_is_recurrent(pointer))
        """No layer has attention."""
        self.carries_state = self.is_recurrent or bool(llama_cpp.llama_model_is_hybrid(pointer))
        """Layers keep a running state instead of a cache, which cannot be cut back."""
        self._pieces: list[bytes | None] = [None] * self.n_vocab

    def adapter(self, path: Path) -> int:
        """llama.cpp's pointer of a LoRA adapter, freed with the model. Raises LoadError."""
        n_before = len(self.log.problems)
        pointer = llama_cpp.llama_adapter_lora_init(self.pointer, str(path).encode())
        if not pointer:
            told = [line for line in self.log.problems[n_before:] if line]
            raise LoadError(f"llama.cpp does not take it: {told[-1][-200:] if told else 'it says no reason'}")
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0

    def close(self) -> None:
        """Free the weights."""
        if self.tower is not None:
            self.tower.close()
        llama_cpp.llama_model_free(self.pointer)

    @property
    def has_tokenizer(self) -> bool:
        """False for files without a vocabulary."""
        return bool(llama_cpp.llama_vocab_type(self.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    @property
    def generates(self) -> bool:
        """True for decoders: encoders and diffusion models cannot continue a text token by token."""
        return bool(
            llama_cpp.llama_model_has_decoder(self.pointer)
            and not llama_cpp.llama_model_has_encoder(self.pointer)
            and not llama_cpp.llama_model_is_diffusion(self.pointer)
            and self.metadata("general.architecture") not in ENCODERS
        )

    def metadata(self, key: str) -> str | None:
        """One value of the file's metadata as text; None when it is not there."""
        size = 1 << 10
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, size)
            if needed < 0:
                return None
            if needed < size:
                return buffer.value.decode("utf-8", "replace")
            size = needed + 1

    def chat_template(self, name: str | None = None) -> str | None:
        """The source of the model's chat template, or of its named variant."""
        source = llama_cpp.llama_model_chat_template(self.pointer, name.encode() if name else None)
        return source.decode("utf-8", "replace") if source else None

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of `text`, without BOS or EOS; special-token literals count as such only with `parse_special`."""
        if len(text) <= fragments.MAX_STRETCH:  # one call, as most texts are
            found = self.library_tokens(text, parse_special=parse_special)
            return found if parse_special else self.plain(found)
        literals, found = self._literals if len(text) > fragments.SHORT_CHARS else None, []
        for fragment in fragments.fragments(text, literals, recursive=self.splits_words):
            found += self.library_tokens(fragment, parse_special=parse_special)
        return found if parse_special else self.plain(found)

    @cached_property
    def plain(self) -> PlainText:
        """Takes control tokens out of plain text."""
        declared = self.metadata("tokenizer.ggml.unknown_token_id")
        usual = _UNKNOWN.get(llama_cpp.llama_vocab_type(self.vocab))
        return PlainText(
            self.controls(),
            unknown=usual if declared is None else int(declared),
            pieces=lambda: [self.piece(token) for token in range(self.n_vocab)],
        )

    @property
    def splits_words(self) -> bool:
        """Whether a text is cut into words before its tokens are looked for."""
        return bool(llama_cpp.llama_vocab_type(self.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_BPE)

    @cached_property
    def _literals(self) -> re.Pattern[str] | None:
        """Every text that the library looks for in a text before it tokenizes the rest."""
        kinds = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        ids = (token for token in range(self.n_vocab) if llama_cpp.llama_vocab_get_attr(self.vocab, token) & kinds)
        found = {self.literal(token).decode("utf-8", "replace") for token in ids} - {""}
        longest_first = sorted(found, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if found else None

    def library_tokens(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """The library's own tokens of a text; what may be in it and how long it may be is the caller's business."""
        raw = text.encode("utf-8", "replace")
        capacity = len(raw) + 16
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), tokens, capacity, add_special, parse_special)
            if count >= 0:
                return tokens[:count]
            capacity = -count

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for control tokens."""
        cached = self._pieces[token]
        if cached is None:
            cached = self._pieces[token] = self._render(token, special=False)
        return cached

    def literal(self, token: int) -> bytes:
        """The bytes of one token, control tokens included."""
        return self._render(token, special=True)

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(128)
        length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, 128, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, -length, 0, special)
        return buffer.raw[:length]

    def controls(self) -> list[Control]:
        """Every control token with a literal."""
        return self._controls

    @cached_property
    def _controls(self) -> list[Control]:
        found = []
        marked, everywhere = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL, llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        left, right = llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP, llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP
        for token in range(self.n_vocab):
            attr = llama_cpp.llama_vocab_get_attr(self.vocab, token)
            literal = self.literal(token).decode("utf-8", "replace") if attr & (marked | everywhere) else ""
            if literal and (attr & marked or looks_like_one(literal)):
                found.append(Control(token, literal, bool(attr & left), bool(attr & right)))
        return found

    def ends(self) -> NDArray[np.int32]:
        """`(n,) int32`: the tokens that end a generation."""
        is_end = llama_cpp.llama_vocab_is_eog
        return np.fromiter((t for t in range(self.n_vocab) if is_end(self.vocab, t)), dtype=np.int32)

    @property
    def bos(self) -> int | None:
        """The token that begins every prompt, where the model wants one."""
        token = llama_cpp.llama_vocab_bos(self.vocab)
        return token if token >= 0 and llama_cpp.llama_vocab_get_add_bos(self.vocab) else None

    @property
    def opening(self) -> int | None:
        """What an empty prompt becomes: BOS, or else end-of-text, which models without BOS begin with."""
        candidates = (llama_cpp.llama_vocab_bos(self.vocab), llama_cpp.llama_vocab_eos(self.vocab))
        return next((token for token in candidates if token >= 0), None)

    def special_texts(self) -> dict[str, str]:
        """`bos_token`, `eos_token` ... as chat templates expect them."""
        ids = {
            "bos_token": llama_cpp.llama_vocab_bos(self.vocab),
            "eos_token": llama_cpp.llama_vocab_eos(self.vocab),
            "pad_token": llama_cpp.llama_vocab_pad(self.vocab),
        }
        return {n: self.literal(token).decode("utf-8", "replace") if token >= 0 else "" for n, token in ids.items()}

    def infill_marks(self) -> InfillMarks | None:
        """The tokens of fill-in-the-middle; None when the vocabulary has none."""
        ids = (
            llama_cpp.llama_vocab_fim_pre(self.vocab),
            llama_cpp.llama_vocab_fim_suf(self.vocab),
            llama_cpp.llama_vocab_fim_mid(self.vocab),
        )
        repository, file = llama_cpp.llama_vocab_fim_rep(self.vocab), llama_cpp.llama_vocab_fim_sep(self.vocab)
        if min(ids) < 0:
            return None
        return InfillMarks(*ids, repository if repository >= 0 else None, file if file >= 0 else None)


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`, which the bindings have not."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def host_overrides(patterns: Sequence[str]) -> ctypes.Array[_Override]:
    """llama.cpp's list of weights that lie in plain host memory, ended by an empty one."""
    buffer_type = libggml.ggml_backend_cpu_buffer_type
    buffer_type.restype = ctypes.c_void_p
    entries = [_Override(pattern.encode(), buffer_type()) for pattern in patterns]
    return (_Override * (len(entries) + 1))(*entries, _Override(None, None))
