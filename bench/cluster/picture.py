"""The picture of `python -m bench cluster`: swaps per request and waits of each rule; SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from server.bench.picture import BLUE, GOLD, GREEN, GREY, nice, text

WIDTH: Final = 900
LEFT: Final = (150.0, 520.0)
BROAD: Final = 330.0
TOP: Final = 92.0
ROW: Final = 44.0


def as_svg(title: str, rules: Mapping[str, Mapping[str, float]]) -> str:
    """The file's text: `rules` by name, with the figures of `Outcome.figures`."""
    height = TOP + ROW * len(rules) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        text(LEFT[0], 28, title, size=16, colour="#1a1a1a"),
        *_swaps(rules),
        *_waits(rules),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _swaps(rules: Mapping[str, Mapping[str, float]]) -> list[str]:
    top = nice(max(figures["swaps_per_request"] for figures in rules.values()))
    parts = [text(LEFT[0], TOP - 24, "loads per request", colour="#1a1a1a")]
    for place, (name, figures) in enumerate(rules.items()):
        y, value = TOP + ROW * place, figures["swaps_per_request"]
        parts.append(text(LEFT[0] - 12, y + 16, name.replace("_", " "), anchor="end", colour="#1a1a1a"))
        parts += _bar(LEFT[0], y, 22, value / top, BLUE if name == "router" else GREY, f"{value:.3f}")
    return parts


def _waits(rules: Mapping[str, Mapping[str, float]]) -> list[str]:
    """On a logarithmic scale from a tenth of a second on."""
    most = max(figures["wait_p99_s"] for figures in rules.values())
    decades = math.ceil(math.log10(max(most, 1.0)) * 1.001) + 1
    parts = [text(LEFT[1], TOP - 24, "seconds to the first token: half of all, 99 of 100", colour="#1a1a1a")]
    for place, figures in enumerate(rules.values()):
        for key, colour, offset in (("wait_p50_s", GREEN, 0), ("wait_p99_s", GOLD, 15)):
            share = (math.log10(max(figures[key], 0.1)) + 1) / decades
            parts += _bar(LEFT[1], TOP + ROW * place + offset, 13, share, colour, f"{figures[key]:.3g}")
    return parts


def _bar(x: float, y: float, thick: float, share: float, colour: str, label: str) -> list[str]:
    wide = max(1.0, share * (BROAD - 50))
    return [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{thick:.0f}" fill="{colour}"/>',
        text(x + wide + 6, y + thick - 3, label),
    ]
