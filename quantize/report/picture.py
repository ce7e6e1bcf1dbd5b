"""The picture of a report: quality lost against size, with the budget as a line; SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from quantize.report.card import Card, Line
from quantize.words import size

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 40, 56, 60


@dataclass(frozen=True)
class _Scale:
    """Bytes to x, KL divergence (logarithmic) to y."""

    max_bytes: float
    log_min: float
    log_max: float

    def x(self, n_bytes: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * n_bytes / self.max_bytes

    def y(self, kl: float) -> float:
        share = (math.log10(max(kl, 1e-12)) - self.log_min) / (self.log_max - self.log_min)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class _Box:
    """What a dot or a name covers, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def as_svg(card: Card) -> str:
    """The file's text; points without scores are left out."""
    points = [(line, line.scores.quality.kl_mean) for line in card.lines[1:] if line.scores is not None]
    kls = [max(kl, 1e-9) for _, kl in points] or [1e-3]
    biggest = max([line.n_bytes for line, _ in points] + [card.budget_bytes or 0, 1])
    log_min, log_max = math.floor(math.log10(min(kls))), math.ceil(math.log10(max(kls)))
    scale = _Scale(biggest * 1.15, log_min, max(log_max, log_min + 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="28" font-size="16" fill="#1a1a1a">{escape(card.model)}: '
        "KL divergence from the source against file size</text>",
        *_axes(scale),
        *(_budget(scale, card.budget_bytes) if card.budget_bytes else []),
        *_points(scale, points),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(scale: _Scale) -> list[str]:
    parts = []
    for power in range(math.floor(scale.log_min), math.ceil(scale.log_max) + 1):
        y = scale.y(10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">1e{power}</text>')
    parts.extend(
        f'<text x="{scale.x(n_bytes):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" '
        f'fill="#555">{size(n_bytes)}</text>'
        for n_bytes in _round_sizes(scale.max_bytes)
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="rotate(-90 22 {middle:.0f})" x="22" y="{middle:.0f}" text-anchor="middle" fill="#555">'
        "mean KL divergence, nats (lower is better)</text>"
    )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle" '
        'fill="#555">size of the weights</text>'
    )
    return parts


def _budget(scale: _Scale, budget_bytes: int) -> list[str]:
    x = scale.x(budget_bytes)
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#c0392b" stroke-dasharray="6 4"/>',
        f'<text x="{x - 6:.1f}" y="{TOP + 12}" text-anchor="end" fill="#c0392b">budget {size(budget_bytes)}</text>',
    ]


def _round_sizes(max_bytes: float) -> Iterator[int]:
    """At most six sizes from 0 on that read well: 1, 2 or 5 times a power of ten in one binary unit."""
    unit = 2 ** (10 * min(3, int(math.log2(max(max_bytes, 1)) // 10)))
    power = 10.0 ** math.floor(math.log10(max_bytes / unit / 5))
    step = next(s * power for s in (1, 2, 5, 10) if s * power * 5 * unit >= max_bytes * 0.999)
    for i in range(int(max_bytes / unit / step) + 1):
        yield round(i * step * unit)


def _points(scale: _Scale, points: Sequence[tuple[Line, float]]) -> Iterator[str]:
    """Dots, and their names where no other dot or name lies: right, left, above or below, in this order."""
    places = [(scale.x(line.n_bytes), scale.y(kl)) for line, kl in points]
    taken = [_Box(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (line, _), (x, y) in zip(points, places, strict=True):
        colour = "#b8860b" if line.type_name.startswith("bnb") else "#2457a6"
        width = 8 * len(line.type_name)
        tries = [
            ("start", x + 9, y + 4, _Box(x + 8, y - 8, x + 10 + width, y + 8)),
            ("end", x - 9, y + 4, _Box(x - 10 - width, y - 8, x - 8, y + 8)),
            ("middle", x, y - 10, _Box(x - width / 2, y - 22, x + width / 2, y - 7)),
            ("middle", x, y + 19, _Box(x - width / 2, y + 7, x + width / 2, y + 22)),
        ]
        free = [t for t in tries if t[3].right <= WIDTH - 4 and not any(t[3].meets(other) for other in taken)]
        anchor, text_x, text_y, box = (free or tries)[0]
        taken.append(box)
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
            f'<text x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="{anchor}" '
            f'fill="#1a1a1a">{escape(line.type_name)}</text>'
        )
