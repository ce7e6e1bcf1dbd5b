"""The eyes of a GGUF model: llama.cpp's mtmd, from a medium's bytes to rows for the language model.

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
    from numpy.typing import NDArray

    from backends.gguf.model import Model
    from backends.gguf.projector import Projector
    from backends.messages import MediaKind, Medium

_UINT8_P: Final = ctypes.POINTER(ctypes.c_uint8)
_SECTIONS: Final = ("t", "y", "x", "z")


class _Chunk(NamedTuple):
    """One piece of what mtmd makes of a medium."""

    pointer: int
    n_rows: int
    n_positions: int
    text: Sequence[int] | None


class Tower:
    """See `backends.generation.media.MediaTower`. Raises LoadError where llama.cpp refuses the projector."""

    def __init__(
        self, projector: Projector, model: Model, *, on_card: bool, n_threads: int, image_max_tokens: int
    ) -> None:
        self.kinds: Sequence[MediaKind] = projector.kinds
        self.leads = False
        self._model = model
        self._n_embd = int(llama_cpp.llama_model_n_embd_inp(model.pointer))
        self._turn = threading.Lock()
        self._kept = KeptRows(projector.kept_bytes(image_max_tokens, self._n_embd))
        self._side = projector.largest_side(image_max_tokens)
        self._decoding = threading.Lock()
        log = model.log
        log.hear_mtmd()
        self._pointer: int | None = _open(projector, model, on_card, n_threads, image_max_tokens)
        if not self._pointer:
            raise LoadError(f"the projector {projector.path.name}: {explain(log)}", out_of_memory=is_out_of_memory(log))
        self._mrope = bool(mtmd.mtmd_decode_use_mrope(self._pointer))
        self._salt = f"{projector.header.file_bytes} {image_max_tokens}"

    def close(self) -> None:
        """Free the projector."""
        with self._turn:
            if self._pointer:
                mtmd.mtmd_free(self._pointer)
            self._pointer = None

    def warm_up(self) -> int:
        """Encode the largest image there can be, so that its buffers exist; how many rows it has. Raises LoadError."""
        if "image" not in self.kinds:
            return 0
        with self._chunks(np.full((self._side, self._side, 3), 127, dtype=np.uint8)) as chunks:
            try:
                return sum(self._encoded(chunk).rows.shape[0] for chunk in chunks if chunk.text is None)
            except JobError as error:
                raise LoadError(f"the projector {error.message}", out_of_memory=error.code == "out_of_memory") from None

    def shapes(self, medium: Medium) -> Sequence[MediaShape | Sequence[int]]:
        """See `backends.generation.media.MediaTower`: by the image's header, without its pixels."""
        digest, found = digest_of(medium, self._salt), []
        with self._chunks(size_of(medium)) as chunks:
            for tile, chunk in enumerate(chunks):
                own = hashlib.sha256(f"{digest} {tile}".encode()).hexdigest()
                shape = MediaShape(chunk.n_rows, chunk.n_positions, own)
                found.append(shape if chunk.text is None else chunk.text)
        return found

    def embed(self, medium: Medium) -> Encoded:
        """See `backends.generation.media.MediaTower`: the rows made before, or made now."""
        digest = digest_of(medium, self._salt)
        if (kept := self._kept.find(digest)) is not None:
            return Encoded(kept, None)
        with self._decoding, self._chunks(pixels_of(medium)) as chunks:
            began = time.perf_counter()
            made = [self._encoded(chunk) for chunk in chunks if chunk.text is None]
            took_s = time.perf_counter() - began
        self._kept.keep(digest, made)
        return Encoded(made, took_s)

    def _encoded(self, chunk: _Chunk) -> Embedding:
        pointer = self._pointer
        alone = bool(mtmd.mtmd_decode_use_non_causal(pointer, chunk.pointer))
        if alone and chunk.n_rows > BATCH_TOKENS:
            told = f"becomes {chunk.n_rows} rows that have to be computed at once, and {BATCH_TOKENS} can be"
            raise JobError("unsupported_media", f"{told}. hint: a smaller image_max_tokens", param="prompt")
        status = mtmd.mtmd_encode_chunk(pointer, chunk.pointer)
        if status != 0:
            short = is_out_of_memory(self._model.log)
            told = "found no memory for its encoder" if short else f"could not be encoded (status {status})"
            raise JobError("out_of_memory" if short else "internal_error", told, param="prompt")
        rows = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(pointer), (chunk.n_rows, self._n_embd)).copy()
        return Embedding(rows, *self._positions(chunk), alone)

    def _positions(self, chunk: _Chunk) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Offsets and slopes of its rows' positions, as `Embedding` has them."""
        if not self._mrope:
            offsets = np.arange(chunk.n_rows, dtype=np.int32)[None]
            return offsets, np.ones_like(offsets)
        tokens = mtmd.mtmd_input_chunk_get_tokens_image(chunk.pointer)
        at = [_grid(tokens, first, chunk.n_rows) for first in (0, 1)]
        return at[0], at[1] - at[0]

    @contextmanager
    def _chunks(self, image: NDArray[np.uint8] | pictures.Size) -> Iterator[list[_Chunk]]:
        """What mtmd makes of pixels, or of a size alone; one thread at a time. Raises JobError."""
        with self._turn:
            if self._pointer is None:
                raise JobError("cancelled", "came when its model was unloaded", param="prompt")
            self._model.log.problems.clear()
            chunks = mtmd.mtmd_input_chunks_init()
            bitmap = _bitmap(image)
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


def _open(projector: Projector, model: Model, on_card: bool, n_threads: int, image_max_tokens: int) -> int | None:
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = on_card
    params.n_threads = n_threads
    params.print_timings = False
    params.warmup = False  # it would take a size of its own; `warm_up` takes the largest
    params.image_max_tokens = image_max_tokens
    pointer: int | None = mtmd.mtmd_init_from_file(str(projector.path).encode(), model.pointer, params)
    return pointer


def _bitmap(image: NDArray[np.uint8] | pictures.Size) -> int:
    if isinstance(image, pictures.Size):
        pointer: int | None = mtmd.mtmd_bitmap_init(image.width, image.height, None)
    else:
        height, width, _ = image.shape
        pointer = mtmd.mtmd_bitmap_init(width, height, np.ascontiguousarray(image).ctypes.data_as(_UINT8_P))
    if not pointer:
        raise JobError("out_of_memory", "found no memory for its pixels", param="prompt")
    return pointer


def _chunk(pointer: int) -> _Chunk:
    n_rows = int(mtmd.mtmd_input_chunk_get_n_tokens(pointer))
    if mtmd.mtmd_input_chunk_get_type(pointer) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
        return _Chunk(pointer, n_rows, int(mtmd.mtmd_input_chunk_get_n_pos(pointer)), None)
    count = ctypes.c_size_t()
    tokens = mtmd.mtmd_input_chunk_get_tokens_text(pointer, ctypes.byref(count))
    return _Chunk(pointer, n_rows, n_rows, tokens[: count.value])


def _grid(tokens: int, first: int, n_rows: int) -> NDArray[np.int32]:
    """`(4, n_rows) int32`: where M-RoPE puts the rows of an image whose first position is `first`."""
    places = [mtmd.mtmd_image_tokens_get_decoder_pos(tokens, first, row) for row in range(n_rows)]
    return np.array([[getattr(place, name) for place in places] for name in _SECTIONS], dtype=np.int32)
