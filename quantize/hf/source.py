"""A Hugging Face folder as a source: its configuration, and its tensors wherever the shards hold them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.files import model_files
from quantize.errors import QuantizeError
from quantize.hf.safetensors import Shard, Stored
from quantize.words import shown


@dataclass(frozen=True)
class HfSource:
    """A checked folder with all shards open."""

    path: Path
    config: dict[str, Any]
    """Of the text model: a `text_config` inside is lifted to the top."""
    architecture: str
    """The first of `architectures`; empty where config.json names none."""
    tensors: dict[str, Stored]
    shards: dict[Path, Shard]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.n_bytes for stored in self.tensors.values())

    @property
    def prevailing_dtype(self) -> str:
        """The number type most bytes are in."""
        bytes_of: dict[str, int] = {}
        for stored in self.tensors.values():
            bytes_of[stored.dtype] = bytes_of.get(stored.dtype, 0) + stored.n_bytes
        return max(bytes_of, key=lambda dtype: bytes_of[dtype])


@contextmanager
def opened(path: Path) -> Iterator[HfSource]:
    """The folder, its headers checked; raises QuantizeError with the first thing that is wrong."""
    try:
        model_files.check_folder(path)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    config = read_config(path)
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    by_type = "architectures" not in config and isinstance(config.get("model_type"), str)
    if not isinstance(named, str) or not (named or by_type):
        raise QuantizeError(f"config.json in {path.name} names no architecture")
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else config
    with ExitStack() as stack:
        shards = {file: stack.enter_context(Shard(file)) for file in shard_files(path)}
        tensors: dict[str, Stored] = {}
        for shard in shards.values():
            for name, stored in shard.tensors.items():
                if name in tensors:
                    raise QuantizeError(
                        f"tensor {shown(name)} is in {tensors[name].file.name} and in {shard.path.name}"
                    )
                tensors[name] = stored
        _check_index(path, tensors)
        yield HfSource(path, merged, named, tensors, shards)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    config = read_json(path / "config.json")
    if config is None:
        raise QuantizeError(f"{path.name} holds no config.json: it is not a Hugging Face model folder", usage=True)
    return config


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON table, or None where the file is not there."""
    try:
        value = model_files.read_json(file, model_files.limit_of(file.name) or model_files.CONFIG_BYTES)
    except model_files.MissingError:
        return None
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    if not isinstance(value, dict):
        raise QuantizeError(f"{file.name} is not a JSON table")
    return value


def shard_files(path: Path) -> list[Path]:
    """The safetensors files of a folder. Raises QuantizeError for one that is missing or lies outside."""
    index = _weight_map(path)
    if index:
        names = sorted(set(index.values()))
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or name in {"", ".", ".."}:
                raise QuantizeError(f"the index names {shown(str(name))}, which is no file of this folder")
        missing = [name for name in names if not model_files.is_there(path / name)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise QuantizeError(
                f"{len(missing)} of {len(names)} shards are missing: {model_files.shown(missing[0])}{more}"
            )
        return [path / name for name in names]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if any(path.glob("pytorch_model*.bin")):
        raise QuantizeError(
            f"{path.name} holds pickled weights (pytorch_model.bin), which can run code; only safetensors are read. "
            "hint: most models have a safetensors revision",
        )
    raise QuantizeError(f"{path.name} holds no model.safetensors")


def _weight_map(path: Path) -> dict[str, Any]:
    index = read_json(path / "model.safetensors.index.json")
    if index is None:
        return {}
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise QuantizeError("model.safetensors.index.json has no weight_map")
    return weights


def _check_index(path: Path, tensors: dict[str, Stored]) -> None:
    missing = sorted(name for name in _weight_map(path) if name not in tensors)
    if missing:
        raise QuantizeError(
            f"the index names {len(missing)} tensors that no shard holds, the first {shown(missing[0])}"
        )
