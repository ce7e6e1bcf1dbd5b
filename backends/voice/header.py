"""What the files of voices say about themselves: their names, their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from backends.backend import Header, HeaderError
from backends.files import model_files
from backends.voice import onnx
from backends.voice.kind import SPEAK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VOICE_BYTES: Final = 64 * 2**20
"""Of one voice; hibari's have 8 MB."""
MOST_VOICES: Final = 16
"""Of a folder; each is held in memory."""
SUFFIX: Final = ".onnx"
_INPUTS: Final = {"ids", "speed"}
_N_OUTPUTS: Final = 6
"""Harmonics, their phases, noise, the rest, its phases, and the pitch."""


@dataclass(frozen=True)
class Voice:
    """One voice by the name that requests say."""

    name: str
    path: Path
    weight_bytes: int
    is_british: bool


@dataclass(frozen=True)
class VoiceHeader(Header):
    """Of one file, or of a folder of them."""

    backend: ClassVar[str] = "voice"

    voices: tuple[Voice, ...]

    @property
    def gives(self) -> str:
        """Speech."""
        return SPEAK.gives

    @property
    def names(self) -> list[str]:
        """Of the voices."""
        return [one.name for one in self.voices]

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        return {"architecture": "hibari", "voices": ", ".join(self.names), "languages": "English"}

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        return ["speech"]


def files_of(path: Path) -> list[Path]:
    """The files at a path that may be voices: itself, or those of a folder that is no other model's."""
    if path.is_dir():
        found = [] if model_files.is_there(path / "config.json") else sorted(path.glob(f"*{SUFFIX}"))
        return found[: 4 * MOST_VOICES]
    return [path] if path.suffix.lower() == SUFFIX else []


def is_voice(path: Path) -> bool:
    """By what goes in and comes out. Raises FileError."""
    try:
        _checked(path)
    except HeaderError:
        return False
    return True


def read(path: Path) -> VoiceHeader:
    """Read and check. Raises HeaderError; blocks."""
    try:
        if not path.is_dir():
            return VoiceHeader((_voice(path),))
        voices = tuple(_voice(file) for file in files_of(path) if is_voice(file))
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    if not 0 < len(voices) <= MOST_VOICES:
        raise HeaderError(f"the folder has {len(voices)} voices, and {MOST_VOICES} are the most. hint: make several")
    return VoiceHeader(voices)


def _checked(path: Path) -> onnx.OnnxFile:
    """Raises HeaderError or FileError."""
    found = onnx.read(model_files.read_bytes(path, VOICE_BYTES))
    if set(found.inputs) != _INPUTS or len(found.outputs) != _N_OUTPUTS:
        raise HeaderError("it is an ONNX file, and none of a voice of hibari. hint: pip install hibari-tts has one")
    return found


def _voice(path: Path) -> Voice:
    """Raises HeaderError or FileError."""
    found = _checked(path)
    name = model_files.shown(path.name[: -len(SUFFIX)])
    return Voice(name, path, found.weight_bytes, name.startswith(("bf_", "bm_")))
