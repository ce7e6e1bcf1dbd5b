"""What a run of `onecard quantize` has made, or would make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.estimator import Estimate
    from quantize.report.card import Card


@dataclass
class Done:
    """What a run made."""

    estimates: list[Estimate]
    contexts: tuple[int, ...]
    """Tokens of context that memory is predicted for."""
    written: list[Path] = field(default_factory=list)
    card: Card | None = None
    reports: list[Path] = field(default_factory=list)
    needed_bytes: int = 0
    """Of the disk, for all outputs and what they are made from on the way."""
