"""The numbers of a config.json: finite, of the right type and sign, and none beyond the tensors that are there.

Libraries make what they say, and what they make of NaN or of a size as text is an error of their own, or nonsense.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.files import model_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_LAYERS: Final = frozenset(
    {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"}
)
_COUNTS: Final = re.compile(r"^(num|n)_|_(size|dim|layers|heads|rank|groups|factor)$|^(dim|ffn_dim|d_model|d_ff|d_kv)$")
_UNBOUNDED: Final = re.compile(r"position|window|chunk|ctx|context|block_size|factor|epoch|step|token_id|steps$")
"""Not held in tensors: positions may be computed, windows and chunks are lengths of text."""
_SIZES: Final = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "vocab_size", "n_embd", "n_head", "n_layer",
)  # fmt: skip
"""Whole numbers from 1 on, in every architecture that has them; some have a list with a number per layer."""
_LIMITS_WITHOUT_END: Final = frozenset({"time_step_limit", "time_step_max"})
"""Infinity stands there in sound configurations (Mamba)."""
_LEAST_LAYERS: Final = 8
_LEAST_LIMIT: Final = 4096
_LEAST_PACKED: Final = 65_536
_MOST_DEPTH: Final = 4
_DAMAGED: Final = "hint: take config.json as its publisher has it"


def check_values(config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """`text` is the text model's part. Raises HeaderError for what is no number that a model can have."""
    if any(not isinstance(part.get("model_type"), str | None) for part in (config, text)):
        raise HeaderError("config.json says model_type, and not as text")
    for key, value in _numbers(config, lists=True):
        if isinstance(value, float) and not math.isfinite(value) and key not in _LIMITS_WITHOUT_END:
            raise HeaderError(f"config.json says {key} = {_spelled(value)}, which is no number. {_DAMAGED}")
    for key in _SIZES:
        size = text.get(key)
        if size is None or isinstance(size, list):
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            told = model_files.shown(json.dumps(size))
            raise HeaderError(f"config.json says {key} = {told}, and it is a whole number from 1 on. {_DAMAGED}")


def check_counts(config: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    """No count may go beyond the tensors, whose shapes these are. Raises HeaderError."""
    largest = max(map(math.prod, shapes), default=0)
    widest = max((n for shape in shapes for n in shape), default=0)
    packed = isinstance(config.get("quantization_config"), dict)
    for key, value in _numbers(config):
        if isinstance(value, float) or not _is_count(key):
            continue
        if key in _LAYERS:
            limit, of = max(_LEAST_LAYERS, len(shapes)), f"{len(shapes)} tensors"
        elif "expert" in key:
            limit, of = max(len(shapes), widest), f"tensors of at most {widest} rows"
        elif packed:
            limit, of = max(_LEAST_PACKED, 2 * largest), f"tensors of at most {largest} values"
        else:
            limit, of = max(_LEAST_LIMIT, 2 * widest), f"tensors of at most {widest} rows or columns"
        if value > limit:
            raise HeaderError(
                f"config.json says {key} = {value}, and the weights are {of}. hint: config.json and weights are not of "
                "one model, or config.json is damaged"
            )


def _numbers(config: Mapping[str, Any], *, lists: bool = False, depth: int = 0) -> Iterator[tuple[str, int | float]]:
    """All numbers of the configuration and of its parts, with their keys; with `lists` those in lists too."""
    for key, value in config.items():
        if isinstance(value, dict) and depth < _MOST_DEPTH:
            yield from _numbers(value, lists=lists, depth=depth + 1)
        for number in value if isinstance(value, list) and lists else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield key, number


def _is_count(key: str) -> bool:
    return _COUNTS.search(key) is not None and _UNBOUNDED.search(key) is None


def _spelled(value: float) -> str:
    """As JSON's extensions write it."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
