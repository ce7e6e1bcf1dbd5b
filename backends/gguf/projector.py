"""The projector beside a GGUF model: the file that holds its eyes or ears, found by content and fitting width. Pure
but for reading headers.

llama.cpp calls it mmproj. It stands beside the model's own file, or where the operator says.
"""

from __future__ import annotations

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

    @property
    def n_bytes(self) -> int:
        """Of all its tensors."""
        return self.header.weight_bytes

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """What it reads."""
        told = self.header.metadata
        found: list[MediaKind] = []
        if told.get("clip.has_vision_encoder", "clip.vision.block_count" in told):
            found.append("image")
        if told.get("clip.has_audio_encoder", False):
            found.append("audio")
        return tuple(found)

    @property
    def type(self) -> str:
        """How it turns patches into rows."""
        names = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
        return next((value for name in names if isinstance(value := self.header.metadata.get(name), str)), "")

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

    def patches(self, image_max_tokens: int) -> int:
        """Of the largest image."""
        side, patch = self._figure("vision.image_size"), self._figure("vision.patch_size")
        whole = (side // patch) ** 2 if patch else 0
        merged = self._figure("vision.spatial_merge_size") or self._figure("vision.projector.scale_factor") or 2
        return max(1, whole if self.is_fixed else image_max_tokens * merged**2)

    @property
    def is_fixed(self) -> bool:
        """It brings every image, or each of its tiles, to one size."""
        return not self.type.startswith(_MANY_SIZES)

    def encoder_bytes(self, image_max_tokens: int) -> int:
        """What the encoder computes in, fitted from above to what llama.cpp reports; see `docs/vision.md`."""
        hidden, inner = self._figure("vision.embedding_length"), self._figure("vision.feed_forward_length")
        pixels = 3 * self._figure("vision.patch_size") ** 2
        each = pixels + 6 * hidden + inner
        return _FLOAT_BYTES * self.patches(image_max_tokens) * each + _LEAST_ENCODER_BYTES

    def kept_bytes(self, image_max_tokens: int, width: int) -> int:
        """Host memory of rows that were made and are kept."""
        rows = self.patches(image_max_tokens) if self.is_fixed else image_max_tokens
        return images.kept_bytes(rows, width)

    def largest_side(self, image_max_tokens: int) -> int:
        """Of a square image that takes as many rows as any."""
        patch = self._figure("vision.patch_size") * (self._figure("vision.spatial_merge_size") or 2)
        many = math.ceil(1.25 * patch * math.sqrt(image_max_tokens))
        return max(1, 2 * self._figure("vision.image_size") if self.is_fixed else many)

    def _figure(self, key: str) -> int:
        value = self.header.metadata.get(f"clip.{key}", 0)
        return value if isinstance(value, int) and value > 0 else 0


_MANY_SIZES: Final = ("qwen", "pixtral", "kimi", "glm4v", "dots", "paddle", "hunyuan", "youtu", "gemma4", "lightonocr")
_FLOAT_BYTES: Final = 4
_LEAST_ENCODER_BYTES: Final = 3 << 20
"""Its graph, and copies of its figures; measured."""


def candidates(path: Path) -> tuple[Path, ...]:
    """Files beside a model that a projector's name suggests. Blocks on the disk."""
    beside = (file for file in path.parent.glob("*.[gG][gG][uU][fF]") if file != path and _NAME.search(file.name))
    return tuple(sorted(file for file in beside if file.is_file() and not PART.fullmatch(file.name)))


def projector_for(path: Path, width: int, options: Mapping[str, object]) -> Projector | None:
    """The projector of a model of this width: the operator's, or the one beside it. Raises HeaderError for his.

    `projector = "off"` takes none. Blocks on the disk.
    """
    asked = options.get("projector", "auto")
    if asked == "off":
        return None
    if isinstance(asked, str) and asked != "auto":
        return _asked(path.parent / Path(asked).expanduser(), width)
    found = [one for file in candidates(path) if (one := _read(file)) is not None and width in one.widths]
    mine = [one for one in found if _belongs(one.path, path)]
    return min(mine, key=lambda one: _rank(one.path), default=None)


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
