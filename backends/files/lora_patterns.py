"""Figures of one layer in an adapter's configuration: what a pattern says of it, else what holds for all. Distrusted.

Patterns come from strangers, and some regular expressions take for ever: only dots, words and `.*` are taken, and each
is held against a name in a time that grows with the name alone.
Format: https://huggingface.co/docs/peft/package_reference/lora (`rank_pattern`, `alpha_pattern`)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from backends.files.adapters import AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_PATTERNS: Final = 2048
_LARGEST: Final = 3e38
"""Near the end of 32 bits' numbers."""
_TABLES: Final = ("rank_pattern", "alpha_pattern")


def check(config: Mapping[str, Any], source: str) -> None:
    """Raises AdapterError for patterns that are none; `source` is what says them."""
    for key in _TABLES:
        table = config.get(key)
        if table is None:
            continue
        if not isinstance(table, dict):
            raise AdapterError(f"{source} says {key} = {str(table)[:40]!r}, which is no table of patterns and figures")
        if len(table) > _MOST_PATTERNS:
            raise AdapterError(f"{source} has {len(table)} patterns in {key}, and {_MOST_PATTERNS} are the most")
        for pattern in table:
            plain = _plain(pattern)
            if re.fullmatch(r"[\w.*]+", plain) is None or "*" in plain.replace(".*", ""):
                raise AdapterError(f"{source} has the pattern {pattern[:60]!r}. hint: write layers' names, and `.*`")


def number(config: Mapping[str, Any], key: str, patterns: str, layer: str, source: str) -> float:
    """A figure of one layer, from a configuration that was checked. Raises AdapterError."""
    table = config.get(patterns) or {}
    value = next((special for pattern, special in table.items() if _means(pattern, layer)), config.get(key, 8))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        raise AdapterError(f"{source} says {key} = {_shown(value)}, which is no number that a model computes with")
    return float(value)


def _shown(value: object) -> str:
    """Python writes no integer of thousands of digits."""
    return "a number of too many digits" if isinstance(value, int) and value.bit_length() > 256 else repr(value)[:40]


def _plain(pattern: str) -> str:
    return pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")


def _means(pattern: str, layer: str) -> bool:
    """Whether peft's pattern means a layer: its whole name, or the end of it behind a dot."""
    first, *others = _plain(pattern).split(".*")
    starts = [0] if pattern.startswith("^") else [0, *(at + 1 for at, letter in enumerate(layer) if letter == ".")]
    if not others:
        return any(layer[start:] == first for start in starts)
    at = next((start + len(first) for start in starts if layer.startswith(first, start)), -1)
    for part in others[:-1]:
        found = layer.find(part, at) if at >= 0 else -1
        at = found + len(part) if found >= 0 else -1
    return at >= 0 and layer.endswith(others[-1]) and len(layer) - len(others[-1]) >= at
