"""The keys of `[models.NAME]` that only such models have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.options import NO_BOOL, Options


class EchoOptions(Options):
    """How a file echoes."""

    voices: Annotated[int, Field(ge=1, le=8), NO_BOOL] = 2
    """How many may speak at once; fewer where memory is short and it is not written down."""
    shout: bool = False
    """Say everything in capitals."""
