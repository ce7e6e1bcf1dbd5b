"""What the files of a folder say of its eyes: whether it sees, what of it does, and what that takes.

A folder sees where config.json has a `vision_config`, transformers has a class for images and text of its type, and how
images are prepared is written down beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backends import images

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PREPARES: Final = ("preprocessor_config.json", "processor_config.json")
"""Either says how images are prepared."""
TYPES: Final = frozenset(
    {"aya_vision", "blip-2", "gemma3", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "qwen2_5_vl",
     "qwen2_vl", "qwen3_vl", "smolvlm", "vipllava"}
)  # fmt: skip
"""Types whose answers were held against transformers' own; see `tests/seeing/test_folder_types.py`."""
_SEE_EACH_OTHER: Final = frozenset({"gemma3"})
_MANY_SIZES: Final = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
_LEADS: Final = frozenset({"blip-2"})
_QUESTIONS: Final = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %} Answer: {{ m.content | trim }} "
    "{% elif m.role == 'system' %}{{ m.content | trim }} "
    "{% else %}Question: {{ m.content | trim }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} Answer:{% endif %}"
)
"""As BLIP-2's paper asks (arXiv 2301.12597, section 4.1)."""
_LANGUAGE: Final = r"(?:.*\.)?(?:language_model|text_model|lm_head)\.|(?:model\.)?(?:layers|embed_tokens|norm)\."
_OF_LANGUAGE: Final = re.compile(_LANGUAGE)
OUTSIDE_LANGUAGE: Final = rf"(?!{_LANGUAGE}).*"
"""For bitsandbytes, which takes names of modules as expressions: the eyes."""
HEAD: Final = r"(?:.*\.)?lm_head"
"""The output head, which bitsandbytes leaves as it is where it is told of no others."""
_LEAST_ENCODER_BYTES: Final = 3 << 20


@dataclass(frozen=True)
class Sight:
    """The eyes of one folder."""

    type: str
    vision: Mapping[str, Any]
    """Its part of config.json."""
    image_tokens: int = 0
    """Rows of one image, as config.json says; 0 where it does not."""
    quantised: bool = False
    """It is quantised with the rest."""

    @property
    def sees_each_other(self) -> bool:
        """Rows of an image attend to those behind them too."""
        return self.type in _SEE_EACH_OTHER

    @property
    def leads(self) -> bool:
        """Images stand before everything else, as BLIP-2 was trained."""
        return self.type in _LEADS

    @property
    def template(self) -> str | None:
        """How a conversation is written where the folder does not say."""
        return _QUESTIONS if self.leads else None

    @property
    def is_fixed(self) -> bool:
        """It brings every image, or each of its tiles, to one size."""
        return self.type not in _MANY_SIZES

    def patches(self, image_max_tokens: int) -> int:
        """Of the largest image, or of one tile."""
        side, patch = self._number("image_size"), self._number("patch_size")
        merged = self._number("spatial_merge_size") or 1
        whole = (side // patch) ** 2 if patch else 0
        return max(1, whole if self.is_fixed and whole else image_max_tokens * merged**2)

    def rows(self, image_max_tokens: int) -> int:
        """Of the largest image."""
        return self.image_tokens or (self.patches(image_max_tokens) if self.is_fixed else image_max_tokens)

    def encoder_bytes(self, image_max_tokens: int, value_bytes: int) -> int:
        """What one image, or one tile, is computed in: every layer's output is kept until the last."""
        hidden, inner = self._number("hidden_size", "embed_dim"), self._number("intermediate_size")
        layers = self._number("num_hidden_layers", "depth")
        each = hidden * (layers + 8) + 2 * (inner or 4 * hidden)
        return self.patches(image_max_tokens) * each * value_bytes + _LEAST_ENCODER_BYTES

    def kept_bytes(self, image_max_tokens: int, width: int) -> int:
        """Host memory of rows that were made and are kept; some models read further ones in their first layers."""
        further = self.vision.get("deepstack_visual_indexes")
        n_widths = 1 + (len(further) if isinstance(further, list) else 0)
        return images.kept_bytes(self.rows(image_max_tokens), n_widths * width)

    def _number(self, *keys: str) -> int:
        for key in keys:
            value = self.vision.get(key)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return 0


def sight_of(folder: Path, config: Mapping[str, Any], *, quantised: bool) -> Sight | None:
    """None for a folder that reads text alone. Looks for names."""
    vision, kind = config.get("vision_config"), config.get("model_type")
    if not isinstance(vision, dict) or kind not in TYPES or not any((folder / name).is_file() for name in PREPARES):
        return None
    told = (config.get(key) for key in ("image_seq_length", "mm_tokens_per_image", "num_query_tokens"))
    rows = next((n for n in told if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)
    return Sight(kind, vision, rows, quantised)


def is_of_language(name: str) -> bool:
    """Whether a stored tensor, or a module, is of the language model."""
    return _OF_LANGUAGE.match(name) is not None
