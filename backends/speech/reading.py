"""The header of a folder that hears, of whatever kind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.backend import HeaderError
from backends.files import model_files
from backends.speech import ctc_header, header, seamless_header

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, *, quantization: str, max_audio_s: float) -> header.SpeechHeader:
    """Read and check. Raises HeaderError; blocks."""
    try:
        config = model_files.read_object(folder / "config.json")
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    if ctc_header.is_ctc(config):
        return ctc_header.read(folder, config, quantization=quantization, max_audio_s=max_audio_s)
    if seamless_header.is_seamless(config):
        return seamless_header.read(folder, config, quantization=quantization, max_audio_s=max_audio_s)
    return header.read(folder, quantization=quantization, max_audio_s=max_audio_s)
