"""The keys of `[models.NAME]` that only models that hear have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.options import NO_BOOL, Options


class SpeechOptions(Options):
    """How a Whisper folder is loaded, and what it takes."""

    quantization: Literal["bnb-4bit", "bnb-8bit", "none"] = "none"
    """Of a folder whose weights are not stored quantised."""
    max_audio_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False), NO_BOOL] = 14400.0
    """The longest recording a request may send, in seconds."""
