"""The projector beside a GGUF model: the file that holds its eyes or ears, found by content and fitting width. Pure
but for reading headers.

llama.cpp calls it mmproj. It stands beside the model's own file, or where the operator says.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends import images
from backends.backend import HeaderError
from backends.gguf.header import read
from backends.gguf.parts import PART

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backends.gguf.info import HeaderInfo
    from backends.messages import MediaKind

_NAME: Final = re.compile(r"mmproj|projector|clip|vision", re.IGNORECASE)
_TYPES: Final = re.compile(r"[-_. ]?(?:(?:i?q\d\w*|b?f16|f32|mmproj|model|gguf|ud|i1)(?=[-_. ]|$))+", re.IGNORECASE)
_ORDER: Final = ("f16", "bf16", "q8_0", "f32")
"""Which of several precisions is taken; others come behind."""
_MADE_OF_CLASS_TOKENS: Final = frozenset({"mlp", "mlp_norm", "ldp", "ldpv2"})
_CLASS_ROW: Final = "v.class_embd"


@dataclass(frozen=True)
class Projector:
    """What a projector's header says."""

    path: Path
    header: HeaderInfo
    image_max_tokens: int = images.IMAGE_MAX_TOKENS
    """Rows of one image at most."""
    max_audio_s: float = images.MAX_AUDIO_S
    """Seconds of one sound at most."""

    @property
    def n_bytes(self) -> int:
        """Of all its tensors."""
        return self.header.weight_bytes

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """What it reads, and this machine decodes."""
        told = self.header.metadata
        found: list[MediaKind] = []
        if told.get("clip.has_vision_encoder", "clip.vision.block_count" in told):
            found.append("image")
        if self.has_ears and self.why_deaf is None:
            found.append("audio")
        return tuple(found)

    @property
    def has_ears(self) -> bool:
        """An encoder of sounds is in the file."""
        return self.header.metadata.get("clip.has_audio_encoder", False) is True

    @property
    def why_deaf(self) -> str | None:
        """Why sounds are not computed although the file has ears, in words with a hint; None where they are."""
        told, made = self._rows_of_window
        if told != made:
            return (
                f"llama.cpp counts {told} rows of 30 s of sound in it and computes {made}, and ends its process over "
                "that. hint: onecard sends it none; a newer llama.cpp may count them right"
            )
        if importlib.util.find_spec("av") is None:
            return "PyAV is missing, which decodes sounds. hint: pip install av"
        return None

    @property
    def type(self) -> str:
        """How it turns patches into rows."""
        return self._type("vision")

    def _type(self, sense: str) -> str:
        names = ("clip.projector_type", f"clip.{sense}.projector_type")
        return next((value for name in names if isinstance(value := self.header.metadata.get(name), str)), "")

    @property
    def _rows_of_window(self) -> tuple[int, int]:
        """Rows of 30 s as llama.cpp counts them (`clip_n_output_tokens`) and as it computes them (`whisper-enc`)."""
        kind, stack = self._type("audio"), self._figure("audio.projector.stack_factor")
        pool = 2 if kind in _POOLED else 1
        stack = stack if kind in _STACKED and stack > 0 else 1
        counted = -(-_WINDOW_FRAMES // stack) // 2 // pool
        return counted, -(-(_WINDOW_FRAMES // 2 // pool) // stack)

    @cached_property
    def widths(self) -> frozenset[int]:
        """The widths of language models that it may fit: older files tell their tower's, newer ones the model's."""
        told = {self._figure(f"{sense}.projection_dim") for sense in ("vision", "audio")}
        ends = {t.shape[-1] for t in self.header.tensors if t.name.startswith(("mm.", "resampler.")) and t.shape}
        return frozenset(told | ends) - {0}

    @property
    def miscounts(self) -> bool:
        """llama.cpp computes towers with a class token one position off (its issue 25814)."""
        return self.type in _MADE_OF_CLASS_TOKENS and any(t.name == _CLASS_ROW for t in self.header.tensors)

    @property
    def patches(self) -> int:
        """Of the largest image."""
        side, patch = self._figure("vision.image_size"), self._figure("vision.patch_size")
        whole = (side // patch) ** 2 if patch else 0
        merged = self._figure("vision.spatial_merge_size") or self._figure("vision.projector.scale_factor") or 2
        return max(1, whole if self.is_fixed else self.image_max_tokens * merged**2)

    @property
    def is_fixed(self) -> bool:
        """It brings every image, or each of its tiles, to one size."""
        return not self.type.startswith(_MANY_SIZES)

    @property
    def encoder_bytes(self) -> int:
        """What the encoders compute in, fitted from above to what llama.cpp reports; see `docs/vision.md`."""
        found = 0
        if "image" in self.kinds:
            hidden, inner = self._figure("vision.embedding_length"), self._figure("vision.feed_forward_length")
            pixels = 3 * self._figure("vision.patch_size") ** 2
            found += self.patches * (pixels + 6 * hidden + inner) * _FLOAT_BYTES + _LEAST_ENCODER_BYTES
        return found + (self._hearing_bytes if "audio" in self.kinds else 0)

    @property
    def _hearing_bytes(self) -> int:
        """Whisper's encoders read 30 s at a time, and others may read all at once, each row of it all others."""
        hidden, inner = self._figure("audio.embedding_length"), self._figure("audio.feed_forward_length")
        n_rows = math.ceil((_WINDOW_S if self._type("audio") in _IN_WINDOWS else self.max_audio_s) * _HEARD_PER_S)
        each = 6 * self._figure("audio.num_mel_bins") + 6 * hidden + inner
        heads = 0 if self._type("audio") in _IN_WINDOWS else self._figure("audio.attention.head_count")
        scores = 2 * heads * (n_rows // _ROWS_PER_SCORE) ** 2
        return _FLOAT_BYTES * (n_rows * each + scores) + _LEAST_ENCODER_BYTES

    def kept_bytes(self, width: int) -> int:
        """Host memory of rows that were made and are kept."""
        seen = heard = 0
        if "image" in self.kinds:
            seen = self.patches if self.is_fixed else self.image_max_tokens
        if "audio" in self.kinds:
            heard = math.ceil(self.max_audio_s / _WINDOW_S) * _WINDOW_S * _MOST_ROWS_PER_S
        return images.kept_bytes(max(seen, heard), width)

    @property
    def way_bytes(self) -> int:
        """Host memory of one medium from its bytes to its encoder."""
        heard = round(self.max_audio_s * images.SOUND_BYTES_PER_S) if "audio" in self.kinds else 0
        return max(images.ON_ITS_WAY_BYTES if "image" in self.kinds else 0, heard)

    @property
    def largest_side(self) -> int:
        """Of a square image that takes as many rows as any."""
        patch = self._figure("vision.patch_size") * (self._figure("vision.spatial_merge_size") or 2)
        many = math.ceil(1.25 * patch * math.sqrt(self.image_max_tokens))
        return max(1, 2 * self._figure("vision.image_size") if self.is_fixed else many)

    @property
    def longest_read_s(self) -> float:
        """Seconds of sound that are encoded at once."""
        return min(self.max_audio_s, _WINDOW_S) if self._type("audio") in _IN_WINDOWS else self.max_audio_s

    def _figure(self, key: str) -> int:
        value = self.header.metadata.get(f"clip.{key}", 0)
        return value if isinstance(value, int) and value > 0 else 0


_MANY_SIZES: Final = ("qwen", "pixtral", "kimi", "glm4v", "dots", "paddle", "hunyuan", "youtu", "gemma4", "lightonocr")
_WINDOW_S: Final = 30
"""Of sound that Whisper's encoder reads at once; a shorter sound is filled up with silence."""
_WINDOW_FRAMES: Final = 3000
_HEARD_PER_S: Final = 50
"""Rows of an encoder for a second of sound, before a projector joins some."""
_MOST_ROWS_PER_S: Final = 25
"""Rows of a prompt for a second of sound; no projector makes more."""
_ROWS_PER_SCORE: Final = 4
"""Encoders that read a whole sound at once make fewer rows of a second first."""
_IN_WINDOWS: Final = frozenset(
    {"ultravox", "voxtral", "qwen2a", "qwen2.5o", "qwen3a", "glma", "meralion", "musicflamingo"}
)
_STACKED: Final = frozenset({"ultravox", "voxtral", "meralion"})
_POOLED: Final = frozenset({"qwen2a", "qwen2.5o", "voxtral", "musicflamingo"})
_FLOAT_BYTES: Final = 4
_LEAST_ENCODER_BYTES: Final = 3 << 20
"""Its graph, and copies of its figures; measured."""


def candidates(path: Path) -> tuple[Path, ...]:
    """Files beside a model that a projector's name suggests. Blocks on the disk."""
    beside = (file for file in path.parent.glob("*.[gG][gG][uU][fF]") if file != path and _NAME.search(file.name))
    return tuple(sorted(file for file in beside if file.is_file() and not PART.fullmatch(file.name)))


def projector_for(path: Path, width: int, options: Mapping[str, object]) -> Projector | None:
    """The projector of a model of this width: the operator's, or the one beside it.

    `projector = "off"` takes none. Blocks on the disk. Raises HeaderError for his, and for a `max_audio_s` too large.
    """
    asked = options.get("projector", "auto")
    if asked == "off":
        return None
    if isinstance(asked, str) and asked != "auto":
        return _bounded(_asked(path.parent / Path(asked).expanduser(), width), options)
    found = [one for file in candidates(path) if (one := _read(file)) is not None and width in one.widths]
    mine = [one for one in found if _belongs(one.path, path)]
    best = min(mine, key=lambda one: _rank(one.path), default=None)
    return None if best is None else _bounded(best, options)


def _bounded(projector: Projector, options: Mapping[str, object]) -> Projector:
    max_audio_s = images.max_audio_s(options)
    if projector.has_ears and max_audio_s > images.MOST_AUDIO_S:
        told = (
            f"max_audio_s is {max_audio_s:g}, and {images.MOST_AUDIO_S:g} s are the most that a sound in a prompt has"
        )
        raise HeaderError(f"{told}. hint: longer recordings are for models that transcribe")
    return Projector(projector.path, projector.header, images.image_max_tokens(options), max_audio_s)


def _asked(path: Path, width: int) -> Projector:
    header = read(path)
    if not _is_projector(header):
        raise HeaderError(
            f"projector = {path.name!r} is no projector (mmproj). hint: name the file with that word in it"
        )
    found = Projector(path, header)
    if width not in found.widths:
        told = ", ".join(map(str, sorted(found.widths))) or "none that it tells"
        raise HeaderError(
            f"the projector {path.name} is for models of width {told}, and this one's is {width}. "
            "hint: take the one that was published with the model"
        )
    return found


def _read(path: Path) -> Projector | None:
    """None for what is no projector, or none that can be read: it was not asked for."""
    try:
        header = read(path)
    except HeaderError:
        return None
    return Projector(path, header) if _is_projector(header) else None


def _is_projector(header: HeaderInfo) -> bool:
    return header.metadata.get("general.type") == "mmproj" or header.architecture in ("clip", "mmproj")


def _belongs(projector: Path, model: Path) -> bool:
    """By their names: the projector's is of this model, or of none where all files beside it are one model's."""
    own, stem = _stem(projector), _stem(model)
    if own:
        return own == stem or stem.startswith(f"{own}-")
    others = (file for file in model.parent.glob("*.[gG][gG][uU][fF]") if not _NAME.search(file.name))
    return _one_model(_stem(file) for file in (*others, model))


def _one_model(stems: Iterable[str]) -> bool:
    return len(set(stems)) == 1


def _stem(path: Path) -> str:
    """A file's name without its part, its precision and the words for a projector."""
    match = PART.fullmatch(path.name)
    name = match["stem"] if match else path.stem
    return re.sub(r"[-_. ]+", "-", _TYPES.sub("", name)).strip("-").lower()


def _rank(path: Path) -> tuple[int, str]:
    words = re.split(r"[-_. ]", path.stem.lower())
    return next((place for place, name in enumerate(_ORDER) if name in words), len(_ORDER)), path.name
