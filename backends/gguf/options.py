"""The keys of `[models.NAME]` that only GGUF files have: none beyond the general ones."""

from __future__ import annotations

from backends.options import Options


class GgufOptions(Options):
    """How llama.cpp loads a file."""
