"""The adapters of a GGUF model: GGUF files of LoRA pairs, held against the model's own header. Reads headers alone.

Format: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.files import foreign, model_files
from backends.files.adapters import MOST_RANK, PEFT_CONFIG, Adapter, AdapterError, configured
from backends.gguf.header import read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backends.gguf.info import HeaderInfo, Tensor

_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_EMBEDDING: Final = "token_embd.weight"
_OTHER_BASE: Final = "hint: is it an adapter of this very base?"


def described(header: HeaderInfo, options: Mapping[str, bool | int | float | str]) -> tuple[Adapter, ...]:
    """What is told of every configured adapter; one that does not fit says why. Raises HeaderError; blocks."""
    named = configured(options)
    if named and header.gives != "text":
        raise HeaderError("it has adapters, and adapters are for models that generate text. hint: leave adapters out")
    return tuple(_described(name, path, header) for name, path in named.items())


def checked(path: Path, header: HeaderInfo) -> HeaderInfo:
    """The header of an adapter that fits the model. Raises AdapterError; blocks."""
    found = _read(path)
    _check_kind(found, header)
    pairs = _pairs(found)
    base = {tensor.name: tensor.shape for tensor in header.tensors}
    for name, sides in pairs.items():
        _check_pair(name, sides, base)
    return found


def _described(name: str, path: Path, header: HeaderInfo) -> Adapter:
    try:
        found = checked(path, header)
    except AdapterError as problem:
        return Adapter(name, path, problem=foreign.plain([str(problem)])[0])
    ranks = [_rank(tensor) for tensor in found.tensors if tensor.name.endswith(".lora_a")]
    n_values = sum(math.prod(tensor.shape) for tensor in found.tensors)
    return Adapter(name, path, max(ranks), len(ranks), n_values, sum(tensor.n_bytes for tensor in found.tensors))


def _read(path: Path) -> HeaderInfo:
    if str(path).startswith("hf:"):
        raise AdapterError(f"{path} is not in the local cache. hint: `hf download {str(path)[3:]}` fetches it")
    if not model_files.is_there(path):
        raise AdapterError(f"there is no file or folder {path}")
    if path.is_dir():
        is_peft = model_files.is_there(path / PEFT_CONFIG)
        does = f"`onecard quantize {path} --to gguf --base MODEL.gguf` makes one" if is_peft else "name the file"
        raise AdapterError(f"{path.name} is a folder, and a GGUF model takes adapters as GGUF files. hint: {does}")
    try:
        return read(path)
    except (HeaderError, model_files.FileError) as error:
        raise AdapterError(str(error)) from None


def _check_kind(found: HeaderInfo, header: HeaderInfo) -> None:
    """Raises AdapterError."""
    kind = found.metadata.get("adapter.type")
    if found.metadata.get("general.type") != "adapter" or kind != "lora":
        what = f"an adapter of type {str(kind)[:40]!r}" if kind is not None else "a model or something else"
        raise AdapterError(f"the file is {what} and no LoRA adapter. hint: name the adapter's own file")
    if found.architecture != header.architecture:
        raise AdapterError(f"it is made for {found.architecture[:40]}, and this model is {header.architecture[:40]}")
    if any(key.startswith("adapter.alora.") for key in found.metadata):
        raise AdapterError("it is activated by certain tokens (aLoRA), which is not served. hint: a plain LoRA is")
    alpha = found.metadata.get("adapter.lora.alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise AdapterError("it does not say adapter.lora.alpha, by which it is scaled. hint: convert it again")


def _pairs(found: HeaderInfo) -> dict[str, dict[str, Tensor]]:
    """By the name of the matrix that they change. Raises AdapterError."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in found.tensors:
        name, _, side = tensor.name.rpartition(".lora_")
        if side not in ("a", "b") or len(tensor.shape) != 2:
            raise AdapterError(f"it holds {tensor.name[:120]!r}, which is no matrix of a LoRA pair")
        if tensor.type_name not in _TYPES:
            raise AdapterError(f"{tensor.name[:120]} is stored in {tensor.type_name}, and {', '.join(_TYPES)} are read")
        pairs.setdefault(name, {})[side] = tensor
    if not pairs:
        raise AdapterError("it holds no matrices. hint: was it converted from a folder with weights?")
    return pairs


def _check_pair(name: str, sides: Mapping[str, Tensor], base: Mapping[str, tuple[int, ...]]) -> None:
    if len(sides) != 2:
        raise AdapterError(f"{name[:120]} has only one matrix of its pair. hint: convert it again")
    if name not in base:
        raise AdapterError(f"it changes {name[:120]}, which this model has not. {_OTHER_BASE}")
    a, b = sides["a"].shape, sides["b"].shape
    if name == _EMBEDDING:  # llama.cpp looks rows of it up, and wants `a` by rows
        raise AdapterError("it changes the embedding, which is not served. hint: train one without embed_tokens")
    if a[1] != b[0] or not 0 < a[1] <= MOST_RANK:
        raise AdapterError(f"{name[:120]} has ranks {a[1]} and {b[0]}, and at most {MOST_RANK} are served")
    if (a[0], b[1]) != base[name][:2] or len(base[name]) != 2:
        raise AdapterError(
            f"it is made for {a[0]} inputs and {b[1]} outputs of {name[:120]}, and this model has {base[name][0]} and "
            f"{base[name][1] if len(base[name]) > 1 else 1} there. {_OTHER_BASE}"
        )


def _rank(a: Tensor) -> int:
    return a.shape[1]
