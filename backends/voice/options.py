"""The keys of `[models.NAME]` that only models that speak have."""

from __future__ import annotations

from typing import Literal

from backends.options import Options


class VoiceOptions(Options):
    """How texts are read."""

    accent: Literal["auto", "american", "british"] = "auto"
    """How words are pronounced; auto: as the voice was made for, American where that is not known."""
