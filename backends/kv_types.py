"""Types of the KV cache: one for keys and values, or one for each, as configuration writes them. Pure."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast, get_args

from backends.messages import KvType

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK: Final = 32
"""Values of one head that a quantised type holds together."""
KV_BYTES: Final[Mapping[KvType, tuple[int, int]]] = MappingProxyType(
    {
        "f32": (1, 4),
        "f16": (1, 2),
        "bf16": (1, 2),
        "q8_0": (BLOCK, 34),
        "q5_1": (BLOCK, 24),
        "q5_0": (BLOCK, 22),
        "q4_1": (BLOCK, 20),
        "q4_0": (BLOCK, 18),
    }
)
"""Elements per block, bytes per block."""
_BITS: Final[Mapping[str, KvType]] = MappingProxyType({"32": "f32", "16": "f16", "8": "q8_0", "5": "q5_0", "4": "q4_0"})
_SHORT: Final = re.compile(r"k(32|16|8|5|4)v(32|16|8|5|4)")
WORDS: Final = f"one of {', '.join(get_args(KvType))}, or two of them as keys/values: q8_0/q4_0, or k8v4 for short"
_ONE: Final = "|".join(get_args(KvType))
PATTERN: Final = f"^({_ONE})/({_ONE})$|^{_SHORT.pattern}$"
"""Of both types in one word."""


def kv_types_of(word: str) -> str:
    """What a person has written as plans have it: `q8_0`, or `q8_0/q4_0` of keys and values. Raises ValueError."""
    text = word.strip().lower()
    if (short := _SHORT.fullmatch(text)) is not None:
        text = f"{_BITS[short[1]]}/{_BITS[short[2]]}"
    keys, _, values = text.partition("/")
    if keys not in KV_BYTES or ("/" in text and values not in KV_BYTES):
        raise ValueError(f"{word!r} is no type of a KV cache: {WORDS}")
    return keys if values in ("", keys) else text


def keys_and_values(kv_type: str) -> tuple[KvType, KvType]:
    """The type of keys and that of values."""
    keys, _, values = kv_type.partition("/")
    return cast("KvType", keys), cast("KvType", values or keys)


def is_quantised(kv_type: KvType) -> bool:
    """Whether it holds several values in one block."""
    return KV_BYTES[kv_type][0] > 1
