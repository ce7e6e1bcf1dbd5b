"""GGUF files whose name begins with `seer`, as a backend that sees would serve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from backends.backend import Files, Setting
from backends.gguf.backend import Gguf
from backends.gguf.info import HeaderInfo
from backends.messages import MediaKind


@dataclass(frozen=True)
class SeerHeader(HeaderInfo):
    """Of a model that reads images."""

    backend: ClassVar[str] = "seer"

    @property
    def capabilities(self) -> list[str]:
        return [*super().capabilities, "vision"]


class Seers(Gguf):
    """See `backends.backend.Backend`."""

    name = "seer"
    files = "a file that sees"
    media: Sequence[MediaKind] = ("image",)
    dry: str | None = None

    def recognise(self, path: Path) -> Files | None:
        return super().recognise(path) if path.name.startswith("seer") else None

    def claims(self, reference: str) -> bool:
        return False

    def describe(self, path: Path, options: Mapping[str, Setting]) -> SeerHeader:
        header = super().describe(path, options)
        return SeerHeader(**{field.name: getattr(header, field.name) for field in fields(header)})
