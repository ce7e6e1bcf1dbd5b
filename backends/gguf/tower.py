"""The eyes and ears of a GGUF model: llama.cpp's mtmd, from a medium's bytes to rows for the language model.

Owns the projector's pointer. Encoding happens in the preparer's thread, beside the engine's steps.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

from backends.engine import JobError, LoadError
from backends.files import pictures
from backends.generation.images import KeptRows, digest_of, pixels_of, size_of
from backends.generation.media import Encoded, MediaShape
from backends.generation.row_layout import Embedding
from backends.gguf.library_log import explain, is_out_of_memory
from backends.plan import BATCH_TOKENS

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from backends.gguf.model import Model
    from backends.gguf.projector import Projector
    from backends.messages import MediaKind, Medium

_UINT8_P: Final = ctypes.POINTER(ctypes.c_uint8)
_FLOAT_P: Final = ctypes.POINTER(ctypes.c_float)
_SECTIONS: Final = ("t", "y", "x", "z")
_MOST_COUNTED: Final = 256
_LEAST_SAMPLES: Final = 2400
"""A shorter sound has too few windows for some encoders."""


class _Chunk(NamedTuple):
    """One piece of what mtmd makes of a medium."""

    pointer: int
    n_rows: int
    n_positions: int
    text: Sequence[int] | None
    is_sound: bool = False


class Tower:
    """See `backends.generation.media.MediaTower`. Raises LoadError where llama.cpp refuses the projector."""

    def __init__(self, projector: Projector, model: Model, *, on_card: bool, n_threads: int) -> None:
        self.kinds: Sequence[MediaKind] = projector.kinds
        self.leads = False
        self._model = model
        self._n_embd = int(llama_cpp.llama_model_n_embd_inp(model.pointer))
        self._turn = threading.Lock()
        self._kept = KeptRows(projector.kept_bytes(self._n_embd))
        self._counted: dict[str, Sequence[MediaShape | Sequence[int]]] = {}
        """Of sounds: their rows are counted by what is made of their samples, which takes as long as decoding them."""
        self._projector = projector
        self._decoding = threading.Lock()
        log = model.log
        log.hear_mtmd()
        self._pointer: int | None = _open(projector, model, on_card, n_threads)
        if not self._pointer:
            raise LoadError(f"the projector {projector.path.name}: {explain(log)}", out_of_memory=is_out_of_memory(log))
        self._mrope = bool(mtmd.mtmd_decode_use_mrope(self._pointer))
        self._rate = max(0, int(mtmd.mtmd_get_audio_sample_rate(self._pointer)))
        self._salt = f"{projector.header.file_bytes} {projector.image_max_tokens}"

    def close(self) -> None:
        """Free the projector."""
        with self._turn:
            if self._pointer:
                mtmd.mtmd_free(self._pointer)
            self._pointer = None

    def warm_up(self) -> None:
        """Encode the largest image and sound there can be, so that their buffers exist. Raises LoadError."""
        try:
            if "image" in self.kinds:
                side = self._projector.largest_side
                with self._chunks(np.full((side, side, 3), 127, dtype=np.uint8)) as chunks:
                    for chunk in chunks:
                        if chunk.text is None:
                            self._encoded(chunk)
            if "audio" in self.kinds:
                _sounds()
                n_samples = max(_LEAST_SAMPLES, round(self._projector.longest_read_s * self._rate))
                with self._chunks(np.zeros(n_samples, dtype=np.float32)) as chunks:
                    self._encoded(max(chunks, key=lambda chunk: chunk.n_rows if chunk.text is None else -1))
        except JobError as error:
            raise LoadError(f"the projector {error.message}", out_of_memory=error.code == "out_of_memory") from None

    def shapes(self, medium: Medium) -> Sequence[MediaShape | Sequence[int]]:
        """See `backends.generation.media.MediaTower`: of an image by its header, without its pixels."""
        digest = digest_of(medium, self._salt)
        if (counted := self._counted.get(digest)) is not None:
            return counted
        found: list[MediaShape | Sequence[int]] = []
        with self._chunks(size_of(medium) if medium.kind == "image" else self._samples(medium)) as chunks:
            for tile, chunk in enumerate(chunks):
                own = hashlib.sha256(f"{digest} {tile}".encode()).hexdigest()
                shape = MediaShape(chunk.n_rows, chunk.n_positions, own)
                found.append(shape if chunk.text is None else chunk.text)
            if medium.kind == "audio":
                if len(self._counted) >= _MOST_COUNTED:
                    del self._counted[next(iter(self._counted))]
                self._counted[digest] = found
        return found

    def embed(self, medium: Medium) -> Encoded:
        """See `backends.generation.media.MediaTower`: the rows made before, or made now."""
        digest = digest_of(medium, self._salt)
        if (kept := self._kept.find(digest)) is not None:
            return Encoded(kept, None)
        with self._decoding:
            raw = pixels_of(medium) if medium.kind == "image" else self._samples(medium)
            with self._chunks(raw) as chunks:
                began = time.perf_counter()
                made = [self._encoded(chunk) for chunk in chunks if chunk.text is None]
                took_s = time.perf_counter() - began
        self._kept.keep(digest, made)
        return Encoded(made, took_s)

    def _samples(self, medium: Medium) -> NDArray[np.float32]:
        heard: NDArray[np.float32] = _sounds().samples_of(medium, rate=self._rate, max_s=self._projector.max_audio_s)
        return heard

    def _encoded(self, chunk: _Chunk) -> Embedding:
        pointer = self._pointer
        alone = bool(mtmd.mtmd_decode_use_non_causal(pointer, chunk.pointer))
        if alone and chunk.n_rows > BATCH_TOKENS:
            told = f"becomes {chunk.n_rows} rows that have to be computed at once, and {BATCH_TOKENS} can be"
            hint = "a shorter sound" if chunk.is_sound else "a smaller image_max_tokens"
            raise JobError("unsupported_media", f"{told}. hint: {hint}", param="prompt")
        status = mtmd.mtmd_encode_chunk(pointer, chunk.pointer)
        if status != 0:
            short = is_out_of_memory(self._model.log)
            told = "found no memory for its encoder" if short else f"could not be encoded (status {status})"
            raise JobError("out_of_memory" if short else "internal_error", told, param="prompt")
        rows = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(pointer), (chunk.n_rows, self._n_embd)).copy()
        return Embedding(rows, *self._positions(chunk), alone)

    def _positions(self, chunk: _Chunk) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Offsets and slopes of its rows' positions, as `Embedding` has them."""
        if not self._mrope or chunk.is_sound:  # a sound's rows follow each other in every section
            n_sections = len(_SECTIONS) if self._mrope else 1
            offsets = np.tile(np.arange(chunk.n_rows, dtype=np.int32), (n_sections, 1))
            return offsets, np.ones_like(offsets)
        tokens = mtmd.mtmd_input_chunk_get_tokens_image(chunk.pointer)
        at = [_grid(tokens, first, chunk.n_rows) for first in (0, 1)]
        return at[0], at[1] - at[0]

    @contextmanager
    def _chunks(self, raw: NDArray[np.uint8] | NDArray[np.float32] | pictures.Size) -> Iterator[list[_Chunk]]:
        """What mtmd makes of pixels, of a size alone, or of samples; one thread at a time. Raises JobError."""
        with self._turn:
            if self._pointer is None:
                raise JobError("cancelled", "came when its model was unloaded", param="prompt")
            self._model.log.problems.clear()
            chunks = mtmd.mtmd_input_chunks_init()
            bitmap = _bitmap(raw)
            try:
                part = mtmd.mtmd_input_part()
                part.bitmap = bitmap
                parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
                status = mtmd.mtmd_tokenize_from_parts(self._pointer, chunks, parts, 1, False)
                if status != 0:
                    told = f"is none that this model's encoder takes (status {status})"
                    raise JobError("unsupported_media", told, param="prompt")
                n_chunks = mtmd.mtmd_input_chunks_size(chunks)
                yield [_chunk(mtmd.mtmd_input_chunks_get(chunks, index)) for index in range(n_chunks)]
            finally:
                mtmd.mtmd_bitmap_free(bitmap)
                mtmd.mtmd_input_chunks_free(chunks)


def _sounds() -> ModuleType:
    """The decoder: 15 MB of a process, which only a model that hears takes, at its load, so that they are measured."""
    from backends.generation import sounds

    return sounds


def _open(projector: Projector, model: Model, on_card: bool, n_threads: int) -> int | None:
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = on_card
    params.n_threads = n_threads
    params.print_timings = False
    params.warmup = False  # it would take a size of its own; `warm_up` takes the largest
    params.image_max_tokens = projector.image_max_tokens
    pointer: int | None = mtmd.mtmd_init_from_file(str(projector.path).encode(), model.pointer, params)
    return pointer


def _bitmap(raw: NDArray[np.uint8] | NDArray[np.float32] | pictures.Size) -> int:
    if isinstance(raw, pictures.Size):
        pointer: int | None = mtmd.mtmd_bitmap_init(raw.width, raw.height, None)
    elif raw.ndim == 1:
        pointer = mtmd.mtmd_bitmap_init_from_audio(raw.size, raw.ctypes.data_as(_FLOAT_P))
    else:
        height, width, _ = raw.shape
        pointer = mtmd.mtmd_bitmap_init(width, height, np.ascontiguousarray(raw).ctypes.data_as(_UINT8_P))
    if not pointer:
        raise JobError("out_of_memory", "found no memory for its pixels or samples", param="prompt")
    return pointer


def _chunk(pointer: int) -> _Chunk:
    n_rows = int(mtmd.mtmd_input_chunk_get_n_tokens(pointer))
    kind = mtmd.mtmd_input_chunk_get_type(pointer)
    if kind != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
        n_positions = int(mtmd.mtmd_input_chunk_get_n_pos(pointer))
        return _Chunk(pointer, n_rows, n_positions, None, is_sound=kind == mtmd.MTMD_INPUT_CHUNK_TYPE_AUDIO)
    count = ctypes.c_size_t()
    tokens = mtmd.mtmd_input_chunk_get_tokens_text(pointer, ctypes.byref(count))
    return _Chunk(pointer, n_rows, n_rows, tokens[: count.value])


def _grid(tokens: int, first: int, n_rows: int) -> NDArray[np.int32]:
    """`(4, n_rows) int32`: where M-RoPE puts the rows of an image whose first position is `first`."""
    places = [mtmd.mtmd_image_tokens_get_decoder_pos(tokens, first, row) for row in range(n_rows)]
    return np.array([[getattr(place, name) for place in places] for name in _SECTIONS], dtype=np.int32)
