"""A LoRA adapter merged into the folder of its base: `W + scale * B A`, a new folder in the base's own number types.

A matrix is read, changed in float32 and written a piece at a time. Files keep their names and their order. A head that
is tied to the embedding and that the adapter changes becomes a matrix of its own.
Source: LoRA, https://arxiv.org/abs/2106.09685, section 4.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from backends.backend import HeaderError
from backends.bnb import adapters, header
from backends.bnb.stored import EMBEDDINGS
from backends.files import lora_copies
from backends.files.adapters import AdapterError
from quantize.adapter import values
from quantize.errors import QuantizeError
from quantize.files import check_space, check_target, copy_beside_weights, replacing
from quantize.hf.safetensors import DTYPES
from quantize.hf.safetensors_writer import Written, write
from quantize.hf.source import opened, read_config, read_json
from quantize.hf.tensor import CHUNK_BYTES, has_special, to_bf16, widen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.bnb.header import FolderInfo
    from backends.files.lora_folder import LoraFolder, LoraPair
    from quantize.hf.safetensors import Shard, Stored
    from quantize.order import Teller

_HEAD: Final = "lm_head"
_HEAD_WEIGHT: Final = "lm_head.weight"
_INDEX: Final = "model.safetensors.index.json"
_INPUTS_FIRST: Final = ("gpt2", "openai-gpt")
"""Types of models whose blocks have transformers' Conv1D, which stores a matrix with its inputs as rows."""
_EXPONENTS: Final = {"F16": 0x7C00, "BF16": 0x7F80}


@dataclass(frozen=True)
class Merge:
    """An adapter and the folder it goes into, held against each other; nothing is written yet."""

    base: Path
    adapter: LoraFolder
    info: FolderInfo
    pairs: Mapping[str, LoraPair]
    """By the name of the stored matrix that each changes; that of a head that gets a matrix of its own is new."""
    inputs_first: frozenset[str]
    """Matrices that are stored `(in, out)`."""
    embedding: str | None
    """The matrix that a new head begins as; None where there is none."""


def checked(source: Path, base: Path) -> Merge:
    """Read both headers. Raises QuantizeError where one does not fit the other or cannot be merged."""
    if not base.is_dir():
        raise QuantizeError(
            f"--base {base.name} is a file, and an adapter is merged into the model folder it was trained on. hint: "
            "name that folder; --to gguf makes an adapter for a GGUF file",
            usage=True,
        )
    try:
        info = header.read(base)
        _check_numbers(info, base)
        found = adapters.checked(source, info)
        lora_copies.check(found, base, adapters.stored_copies(found, info))
    except HeaderError as problem:
        raise QuantizeError(f"{base.name}: {problem}", usage=True) from None
    except AdapterError as problem:
        raise QuantizeError(f"{source.name} does not fit {base.name}: {problem}", usage=True) from None
    return _placed(found, info, base)


def _check_numbers(info: FolderInfo, base: Path) -> None:
    """Raises QuantizeError for a base that is quantised."""
    if info.stored_quantised:
        raise QuantizeError(
            f"{base.name} is stored quantised, and sums of its numbers and an adapter's are none that it can hold. "
            "hint: --base names the unquantised folder; --to bnb-4bit then quantises what is merged",
            usage=True,
        )


def _placed(found: LoraFolder, info: FolderInfo, base: Path) -> Merge:
    pairs: dict[str, LoraPair] = {}
    turned, embedding = set(), None
    for pair in found.pairs:
        matrix = adapters.stored_matrix(pair.layer, info)
        name = matrix.name
        if name.endswith(EMBEDDINGS):
            if pair.layer != _HEAD:
                raise QuantizeError(f"the adapter changes {name[:120]}, an embedding, which is not merged", usage=True)
            name, embedding = _HEAD_WEIGHT, name
        elif info.architecture in _INPUTS_FIRST and pair.layer != _HEAD:
            turned.add(name)
        shape, fits = matrix.shape, (pair.b.shape[0], pair.a.shape[1])
        if fits != (shape[::-1] if name in turned else shape):
            raise QuantizeError(
                f"the adapter is made for {fits[1]} inputs and {fits[0]} outputs of {pair.layer[:120]}, and "
                f"{base.name} stores them the other way round",
                usage=True,
            )
        if matrix.dtype not in ("F64", "F32", "F16", "BF16"):
            raise QuantizeError(f"{name[:120]} is stored in {matrix.dtype}, to which nothing can be added", usage=True)
        if name in pairs:
            raise QuantizeError(f"the adapter changes {name[:120]} twice, under two names", usage=True)
        pairs[name] = pair
    return Merge(base, found, info, pairs, frozenset(turned), embedding)


def write_merged(merge: Merge, target: Path, tell: Teller, *, force: bool = False) -> None:
    """Write the folder whole or not at all. Raises QuantizeError."""
    check_target(target, merge.base, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(target.parent, n_bytes(merge))
    with replacing(target) as temporary, opened(merge.base) as source:
        temporary.mkdir()
        done = _Progress(tell, n_bytes(merge))
        new_head: Path | None = None
        for file, shard in source.shards.items():
            tensors = [_written(merge, shard, stored, done) for stored in shard.tensors.values()]
            embedding = shard.tensors.get(merge.embedding or "")
            if embedding is not None:
                new_head = file
                tensors.append(_written(merge, shard, embedding, done, name=_HEAD_WEIGHT))
            write(temporary / file.name, tensors)
        _write_configuration(merge, temporary, new_head)
        header.read(temporary)


def n_bytes(merge: Merge) -> int:
    """Of all numbers of the folder that is written."""
    sizes = {tensor.name: tensor.n_bytes for tensor in merge.info.tensors}
    return sum(sizes.values()) + sizes.get(merge.embedding or "", 0)


def _written(merge: Merge, shard: Shard, stored: Stored, done: _Progress, *, name: str = "") -> Written:
    name = name or stored.name
    pair = merge.pairs.get(name)
    if pair is None:
        return Written(name, stored.dtype, stored.shape, partial(_copied, shard, stored, done))
    return Written(name, stored.dtype, stored.shape, partial(_changed, merge, shard, stored, pair, name, done))


def _copied(shard: Shard, stored: Stored, done: _Progress) -> Iterator[memoryview]:
    for first, count in _pieces(stored):
        yield done.told(shard.rows(stored, first, count))


def _changed(
    merge: Merge, shard: Shard, stored: Stored, pair: LoraPair, name: str, done: _Progress
) -> Iterator[memoryview]:
    a, b = values(merge.adapter, pair.a), values(merge.adapter, pair.b) * np.float32(pair.scale)
    left, right = (a.T, b.T) if name in merge.inputs_first else (b, a)
    for first, count in _pieces(stored):
        numbers = widen(shard.rows(stored, first, count), stored.dtype)
        changed = numbers + left[first : first + count] @ right  # float32, or float64 where that is stored
        yield done.told(_narrowed(changed, stored.dtype, name))


def _pieces(stored: Stored) -> Iterator[tuple[int, int]]:
    """First row and number of rows, of all pieces of a tensor."""
    n_rows = stored.shape[0] if stored.shape else 1
    step = max(1, CHUNK_BYTES * n_rows // max(1, stored.n_bytes))
    for first in range(0, n_rows, step):
        yield first, min(step, n_rows - first)


def _narrowed(numbers: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """In the stored type. Raises QuantizeError where it has no such number."""
    if dtype == "BF16":
        made = to_bf16(numbers)
    else:
        with np.errstate(over="ignore"):
            made = numbers.astype(DTYPES[dtype])
    exponent = _EXPONENTS.get(dtype)
    sound = np.isfinite(made).all() if exponent is None else not has_special(made.view(np.uint16), exponent)
    if not sound:
        largest = float(np.abs(numbers).max())
        raise QuantizeError(
            f"{name[:120]} comes to {largest:.3g} with the adapter, which {dtype} cannot hold. "
            "hint: is the adapter one of this very base, and are the base's numbers sound?"
        )
    return made


def _write_configuration(merge: Merge, target: Path, new_head: Path | None) -> None:
    """The base's own files; a head of its own is said where one was made."""
    copy_beside_weights(merge.base, target)
    config, index = read_config(merge.base), read_json(merge.base / _INDEX)
    if _HEAD_WEIGHT in merge.pairs:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"]["tie_word_embeddings"] = False
    files = {"config.json": config}
    if index is not None:
        if new_head is not None:
            index["weight_map"][_HEAD_WEIGHT] = new_head.name
            index["metadata"] = {"total_size": n_bytes(merge)}
        files[_INDEX] = index
    for name, document in files.items():
        (target / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class _Progress:
    """Counts what is on its way to the disk."""

    def __init__(self, tell: Teller, total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0

    def told(self, numbers: NDArray[Any]) -> memoryview:
        """The bytes of a piece, counted."""
        view: memoryview = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data
        self._done += len(view)
        self._tell.progress("merging", self._done, self._total)
        return view
