"""What the stored tensors say where config.json says otherwise; serving a folder and quantising it both decide here.

The tensors are right: a configuration is edited by hand and by tools, the weights are what was trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backends.files import model_files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS: Final = ("lm_head.weight", "embed_out.weight")
_CHUNK_BYTES: Final = 2**20
_BUFFERS: Final = (".inv_freq", ".attn.bias", ".masked_bias", ".position_ids")
"""Computed, and stored by older versions of transformers all the same."""
_FURTHER_TOKENS: Final = ("eh_proj", "enorm", "hnorm", "shared_head", "mtp", "nextn")
_LAYER: Final = re.compile(r"(.+?\.?(?:layers|h))\.(\d+)\..+")
_NAMES: Final[Mapping[str, str]] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_HALVES: Final = ("F16", "BF16")


@dataclass(frozen=True)
class Place:
    """Where the numbers of one tensor lie."""

    name: str
    path: Path
    start: int
    """Byte in the file."""
    n_bytes: int
    dtype: str
    shape: tuple[int, ...]


def find(places: Iterable[Place], endings: tuple[str, ...]) -> Place | None:
    """The only tensor whose name ends so; None where there is none, or more than one."""
    found = [place for place in places if f".{place.name}".endswith(tuple(f".{end}" for end in endings))]
    return found[0] if len(found) == 1 else None


def has_own_head(embedding: Place | None, head: Place | None, *, tied: bool, limit_bytes: int | None = None) -> bool:
    """The output head is stored and is not the embedding, whatever `tie_word_embeddings` says.

    Reads both matrices, or the first `limit_bytes` of them, until a byte differs. Raises FileError.
    """
    if head is None:
        return False
    if embedding is None:
        return not tied
    return not tied or not _same(embedding, head, limit_bytes)


def _same(one: Place, other: Place, limit_bytes: int | None) -> bool:
    if (one.dtype, one.shape, one.n_bytes) != (other.dtype, other.shape, other.n_bytes):
        return False
    left = one.n_bytes if limit_bytes is None else min(limit_bytes, one.n_bytes)
    with model_files.opened(one.path) as first, model_files.opened(other.path) as second:
        at = 0
        while at < left:
            n = min(_CHUNK_BYTES, left - at)
            chunk = first.at(one.start + at, n)
            if not chunk or chunk != second.at(other.start + at, n):
                return False
            at += len(chunk)
        return True


def own_head_remark(head: Place) -> str:
    """For a reader: the configuration is not followed."""
    return (
        f"config.json ties the head to the embedding, and {head.name} is stored with other numbers: "
        "the stored head is used"
    )


def stored_dtype(dtype: Any, bytes_of: Mapping[str, int]) -> str | None:
    """The number type that weights of 16 bits are in, where config.json says another; None where it is right.

    float16 cannot hold what bfloat16 can, and float32 of such weights is twice the memory for the same numbers; what
    the configuration says is computed in all the same, as transformers does.
    """
    floats = {name: n for name, n in bytes_of.items() if name in _NAMES}
    if not floats:
        return None
    most = max(floats, key=lambda name: floats[name])
    return _NAMES[most] if most in _HALVES and isinstance(dtype, str) and dtype != _NAMES[most] else None


def corrections(places: Iterable[Place], config: Any) -> dict[str, tuple[Any, str]]:
    """Keys of a text configuration that the tensors contradict -> the true value, and the sentence for the operator."""
    known = list(places)
    found: dict[str, tuple[Any, str]] = {}
    embedding = find(known, EMBEDDINGS)
    said = _value(config, "vocab_size")
    if embedding is not None and len(embedding.shape) == 2 and isinstance(said, int) and said != embedding.shape[0]:
        n_rows = embedding.shape[0]
        found["vocab_size"] = (
            n_rows,
            f"config.json says vocab_size = {said}, and {embedding.name} has {n_rows} rows: the rows are right",
        )
    for key, ending in (("attention_bias", "self_attn.q_proj.bias"), ("mlp_bias", "mlp.gate_proj.bias")):
        if _value(config, key) is False and any(place.name.endswith(ending) for place in known):
            found[key] = (True, f"config.json says {key} = false, and {ending} is stored: it is used")
    return found


def layers_of(names: Iterable[str]) -> int:
    """How many layers the longest stack of stored names has; 0 where none are numbered."""
    matches = [match for name in names if (match := _LAYER.fullmatch(name))]
    return 1 + max((int(match[2]) for match in matches), default=-1)


def unused_within(names: Iterable[str], modules: Collection[str]) -> list[str]:
    """Of the stored names that a model did not take: those inside a module it computes, and layers beyond its last.

    Other parts of a file (a vision tower, another task's head) and layers that predict further tokens may be left out.
    """
    known = sorted(names)
    layers = [(match[1], match[2], name) for name in known if (match := _LAYER.fullmatch(name)) and match[1] in modules]
    further = {(base, number) for base, number, name in layers if any(part in name for part in _FURTHER_TOKENS)}
    beyond = {
        f"{base}.{number}"
        for base, number, _ in layers
        if f"{base}.{number}" not in modules and (base, number) not in further
    }
    inside = [n for n in known if n.rpartition(".")[0] in modules and not n.endswith(_BUFFERS)]
    return [*inside, *sorted(beyond)]


def _value(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, dict) else getattr(config, key, None)
