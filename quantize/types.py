"""The output types a user can name, and which engine makes each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from backends.gguf.tensor_types import TENSOR_TYPES
from quantize.errors import QuantizeError
from quantize.words import nearest, shown

FLOATS: Final = ("F32", "F16", "BF16")

FILE_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "Q4_0": 2,
        "Q4_1": 3,
        "Q8_0": 7,
        "Q5_0": 8,
        "Q5_1": 9,
        "Q2_K": 10,
        "Q3_K_S": 11,
        "Q3_K_M": 12,
        "Q3_K_L": 13,
        "Q4_K_S": 14,
        "Q4_K_M": 15,
        "Q5_K_S": 16,
        "Q5_K_M": 17,
        "Q6_K": 18,
        "IQ2_XXS": 19,
        "IQ2_XS": 20,
        "Q2_K_S": 21,
        "IQ3_XS": 22,
        "IQ3_XXS": 23,
        "IQ1_S": 24,
        "IQ4_NL": 25,
        "IQ3_S": 26,
        "IQ3_M": 27,
        "IQ2_S": 28,
        "IQ2_M": 29,
        "IQ4_XS": 30,
        "IQ1_M": 31,
        "BF16": 32,
        "TQ1_0": 36,
        "TQ2_0": 37,
        "MXFP4_MOE": 38,
        "Q1_0": 40,
        "Q2_0": 41,
    }
)
"""Name -> llama.cpp's `llama_ftype`."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32", "BNB": "bnb-4bit"}
)

BNB_TYPES: Final = ("bnb-4bit", "bnb-nf4", "bnb-fp4", "bnb-8bit")
"""`bnb-4bit` is NF4, the better of the two for weights that are spread normally."""

HF: Final = "hf"
"""A model folder: what CTranslate2's was made from, or an adapter within its base; nothing is quantised."""

GGUF: Final = "gguf"
"""An adapter of peft as llama.cpp reads it; nothing is quantised."""

NEED_IMATRIX: Final = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S"})
"""Types that are noise without an importance matrix; llama.cpp's own tools refuse them too."""

FIT_LADDER: Final = (
    "F16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q2_K",
)
"""What `--fit` tries, best first; types that need an importance matrix are not among them."""


def parse_types(text: str) -> list[str]:
    """Names of a list like `Q4_K_M,bnb-4bit`, each once. Raises QuantizeError naming the nearest type."""
    names: list[str] = []
    for part in text.split(","):
        if (name := part.strip()) and (found := parse_type(name)) not in names:
            names.append(found)
    if not names:
        raise QuantizeError("--to names no type. hint: --to Q4_K_M", usage=True)
    return names


def parse_type(name: str) -> str:
    """The type of this name in its own spelling."""
    upper = name.upper().replace("-", "_")
    if upper in FILE_TYPES:
        return upper
    if upper in ALIASES:
        return ALIASES[upper]
    lower = name.lower().replace("_", "-")
    if lower in (HF, GGUF):
        return lower
    if lower in BNB_TYPES:
        return "bnb-4bit" if lower == "bnb-nf4" else lower
    near = nearest(name, [*FILE_TYPES, *BNB_TYPES])
    usual = ", ".join([*FIT_LADDER, *BNB_TYPES])
    hint = f"; the nearest is {near}" if near else f". hint: {usual}; docs/quantize.md names the rest"
    raise QuantizeError(f"{shown(name)} is no type{hint}", usage=True)


def is_bnb(name: str) -> bool:
    """Made by bitsandbytes, as a folder."""
    return name in BNB_TYPES


def least_bytes(name: str, n_weights: int) -> int:
    """What an output of this type takes at least, where all its tensors have the smallest type of its name."""
    if is_bnb(name):
        return n_weights if name == "bnb-8bit" else n_weights // 2
    stem = name.partition("_")[0]
    kinds = [kind for kind in TENSOR_TYPES.values() if kind[0].partition("_")[0] == stem]
    return min(n_weights * n_bytes // n_values for _, n_values, n_bytes in kinds)


def tensor_type(name: str) -> int:
    """ggml's number of a tensor type, for overrides. Raises QuantizeError."""
    by_name = {entry[0]: number for number, entry in TENSOR_TYPES.items()}
    if name.upper() not in by_name:
        near = nearest(name, by_name)
        raise QuantizeError(f"{shown(name)} is no tensor type{f'; the nearest is {near}' if near else ''}", usage=True)
    return by_name[name.upper()]
