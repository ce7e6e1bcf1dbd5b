"""LoRA adapters as a model's options name them, and what is told of each. How a backend reads one is its own matter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.files.model_files import statuses_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEY: Final = "adapters"
"""The option: a JSON object of names and paths."""
PEFT_CONFIG: Final = "adapter_config.json"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS: Final = "pytorch_lora_weights.safetensors"
MOST_RANK: Final = 1024
"""Of one matrix pair; peft's users take 4 to 256."""


class AdapterError(Exception):
    """An adapter that cannot be served with its base; the message is a sentence without the adapter's name."""


class Change(NamedTuple):
    """What an adapter does to one linear layer of its base: the sizes of its pair."""

    layer: str
    rank: int
    n_inputs: int
    n_outputs: int


@dataclass(frozen=True)
class Adapter:
    """What an adapter's files say, once they were held against the base; they are not read again by the server."""

    name: str
    path: Path
    rank: int = 0
    """The largest of its matrix pairs."""
    n_targets: int = 0
    """Matrices of the base that it changes."""
    n_values: int = 0
    """Numbers of all its matrices."""
    n_bytes: int = 0
    """What they take as they are stored."""
    changes: tuple[Change, ...] = ()
    """All that it does, where what it takes depends on the other adapters of its base."""
    problem: str | None = None
    """Why it is not served; None where it is."""


def configured(options: Mapping[str, bool | int | float | str]) -> dict[str, Path]:
    """Names and paths of a model's adapters."""
    written = options.get(KEY)
    return {name: Path(path) for name, path in json.loads(written).items()} if isinstance(written, str) else {}


def remarks(adapters: Iterable[Adapter]) -> list[str]:
    """What the operator should know of those that are not served."""
    return [f"adapter '{adapter.name}' is not served: {adapter.problem}" for adapter in adapters if adapter.problem]


def served(adapters: Iterable[Adapter]) -> list[Adapter]:
    """Those that nothing speaks against."""
    return [adapter for adapter in adapters if adapter.problem is None]


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that decide what an adapter is."""
    return (path, path / PEFT_CONFIG, path / PEFT_WEIGHTS, path / DIFFUSERS_WEIGHTS)


def statuses(options: Mapping[str, bool | int | float | str]) -> list[tuple[int, int, int]]:
    """Size, time of change and inode of every adapter's files that are there: another file is another adapter."""
    return [status for path in configured(options).values() for status in statuses_of(files_of(path))]


def identity(path: Path) -> str:
    """What tells one state of an adapter's files from another."""
    return repr(statuses_of(files_of(path)))
