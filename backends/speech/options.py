"""The keys of `[models.NAME]` that only models that hear have."""

from __future__ import annotations

from typing import Literal

from backends.options import SoundOptions


class SpeechOptions(SoundOptions):
    """How a Whisper folder is loaded, and what it takes."""

    quantization: Literal["bnb-4bit", "bnb-8bit", "none"] = "none"
    """Of a folder whose weights are not stored quantised."""
