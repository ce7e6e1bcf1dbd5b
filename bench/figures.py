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
    late = missed(figures)
    for name, value in figures.items():
        said = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{name:28} {said}{'  MISSED' if name in late else ''}")
    if late:
        print(f"missed: {', '.join(late)}")


def missed(figures: Mapping[str, Any]) -> list[str]:
    """Figures beyond their `..._limit`: above it, or below it where the name ends in `_ratio`."""
    found = []
    for name, limit in figures.items():
        figure = name.removesuffix("_limit")
        if figure == name or figure not in figures:
            continue
        value = figures[figure]
        if value < limit if figure.endswith("_ratio") else value > limit:
            found.append(figure)
    return found
