"""Engines with eyes in this process, and prompts of text and images for them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from backends.backend import Setting
from backends.bnb.loading import load as load_folder
from backends.engine import AnyEngine
from backends.gguf.loading import load
from backends.messages import (
    Generate,
    KvLayout,
    MediaSegment,
    Medium,
    Sampling,
    Segment,
    SegmentPrompt,
    Store,
    TokenSegment,
)
from tests.models import seeing, seeing_folders
from tests.models.canary_kv import EXACT_CELLS
from tests.models.seeing import SIGHTS
from tests.specs import spec_of

_NUMBERS = itertools.count()
MADE = (*SIGHTS, "llava", "qwen2_vl", "gemma3")
"""GGUF models, then folders: rows of images as others, rows that share positions, rows that see each other."""
LAYOUT: dict[str, KvLayout] = {made: ("split", "unified")[number % 2] for number, made in enumerate(MADE)}
"""In which each is walked through: rows of each kind go through both, one in each backend."""
Piece = list[int] | bytes
"""Tokens, or an image or a WAV file."""


def build(folder: Path, made: str) -> Path:
    """One of `MADE`."""
    for sight in SIGHTS:
        if sight == made:
            return seeing.build(folder, sight)
    seeing_folders.write(folder, made)
    return folder


def open_seer(
    model: Path,
    *,
    layout: KvLayout = "split",
    parallel: int = 4,
    kv_tokens: int = 0,
    store: Path | None = None,
    store_bytes: int = 64 << 20,
    context: int = 1024,
    max_itl_ms: float = 0.0,
    options: dict[str, Setting] | None = None,
) -> AnyEngine:
    spec = spec_of(
        name="seer",
        backend="bnb" if model.is_dir() else "gguf",
        path=str(model),
        context=context,
        parallel=parallel,
        threads=1,
        kv_layout=layout,
        kv_type="f32" if model.is_dir() else EXACT_CELLS,
        kv_tokens=kv_tokens,
        max_itl_ms=max_itl_ms,
        store=Store(str(store), store_bytes) if store is not None else None,
        options={"image_max_tokens": 128} | (options or {}),
    )
    return (load_folder if model.is_dir() else load)(spec, lambda _: None)


def medium(data: bytes, *, detail: str = "") -> Medium:
    digest = hashlib.sha256(data).hexdigest()
    if data[8:12] == b"WAVE":
        return Medium("audio", data, digest, "audio/wav")
    return Medium("image", data, digest, "image/png", detail)


def look(pieces: Sequence[Piece], n_tokens: int = 16, **fields: object) -> Generate:
    segments: list[Segment] = [
        TokenSegment(piece) if isinstance(piece, list) else MediaSegment(medium(piece)) for piece in pieces
    ]
    return Generate(
        id=f"look-{next(_NUMBERS)}",
        prompt=SegmentPrompt(segments),
        max_tokens=n_tokens,
        ignore_eos=True,
        sampling=Sampling(temperature=0),
        logprobs=4,
        **fields,  # type: ignore[arg-type]
    )
