"""The way measured numbers are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def emit(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print figures, as one JSON line for a parent process or as lines for a reader."""
    if as_json:
        print(json.dumps(figures), flush=True)
        return
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
