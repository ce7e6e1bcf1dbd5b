"""The picture of a bench: tokens per second beside the baseline's, and waiting times; SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from server.bench.measure import Row
from server.bench.report import Report

WIDTH, HEIGHT = 980, 440
TOP, BOTTOM = 84, 356
BLUE, GREY, GREEN, GOLD, RED = "#2457a6", "#b4bcc8", "#2e7d4f", "#b8860b", "#c0392b"
_TIMES: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
    ("first token, p50", GREEN, lambda row: row.ttft_ms.p50),
    ("between texts, p50", BLUE, lambda row: row.itl_ms.p50),
    ("between texts, p99", GOLD, lambda row: row.itl_ms.p99),
    ("longest ITL beside a prompt", RED, lambda row: row.prefill_itl_ms),
)


@dataclass(frozen=True)
class _Panel:
    """A rectangle with one group of marks per row, and a scale from values to heights."""

    left: float
    right: float
    low: float
    high: float
    logarithmic: bool

    def y(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def centre(self, index: int, count: int) -> float:
        return self.left + (self.right - self.left) * (index + 0.5) / count


def as_svg(report: Report) -> str:
    """The file's text."""
    about = f"{report.prompt_tokens} tokens in, {report.generate_tokens} out, context {report.context}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(70, 28, f"onecard bench {report.model}", size=16, colour="#1a1a1a"),
        text(70, 48, about),
        *_rates(report),
        *_times(report),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _rates(report: Report) -> list[str]:
    """Left: bars of tokens per second."""
    rows = report.rows
    top = nice(max(max(row.tokens_per_s, row.bare_tokens_per_s or 0) for row in rows))
    panel = _Panel(70, 470, 0, top, logarithmic=False)
    parts = _frame(panel, [top * i / 4 for i in range(5)], "tokens per second, all requests together", rows)
    bar = min(34.0, (panel.right - panel.left) / len(rows) * 0.36)
    for index, row in enumerate(rows):
        x = panel.centre(index, len(rows))
        if row.bare_tokens_per_s is None or row.efficiency is None:
            parts.append(_bar(panel, x - bar / 2, bar, row.tokens_per_s, BLUE))
            continue
        parts.append(_bar(panel, x - bar - 1, bar, row.tokens_per_s, BLUE))
        parts.append(_bar(panel, x + 1, bar, row.bare_tokens_per_s, GREY))
        y = panel.y(max(row.tokens_per_s, row.bare_tokens_per_s)) - 6
        parts.append(text(x, y, f"{row.efficiency:.2f}", anchor="middle", colour="#1a1a1a"))
    named = [("onecard", BLUE)] + ([(report.baseline, GREY)] if report.baseline_missing is None else [])
    return parts + _legend(panel.left, named, columns=2)


def _times(report: Report) -> list[str]:
    """Right: waiting times on a logarithmic scale."""
    rows = report.rows
    values = [value for _, _, of in _TIMES for row in rows if (value := of(row))]
    if not values:
        return []
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.001))
    panel = _Panel(560, 950, low, high, logarithmic=True)
    ticks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    parts = _frame(panel, ticks, "milliseconds a client waits", rows)
    for _, colour, of in _TIMES:
        points = [(panel.centre(i, len(rows)), panel.y(value)) for i, row in enumerate(rows) if (value := of(row))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    return parts + _legend(panel.left, [(name, colour) for name, colour, _ in _TIMES], columns=2)


def _frame(panel: _Panel, ticks: list[float], title: str, rows: list[Row]) -> list[str]:
    parts = [text(panel.left, TOP - 12, title, colour="#1a1a1a")]
    for tick in ticks:
        y = panel.y(tick)
        parts.append(
            f'<line x1="{panel.left}" x2="{panel.right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>'
            + text(panel.left - 8, y + 4, f"{tick:g}", anchor="end")
        )
    for index, row in enumerate(rows):
        parts.append(text(panel.centre(index, len(rows)), BOTTOM + 20, str(row.parallel), anchor="middle"))
    middle = (panel.left + panel.right) / 2
    return [*parts, text(middle, BOTTOM + 40, "requests at once", anchor="middle")]


def _bar(panel: _Panel, x: float, width: float, value: float, colour: str) -> str:
    y = panel.y(value)
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOTTOM - y:.1f}" fill="{colour}"/>'


def _legend(left: float, entries: list[tuple[str, str]], *, columns: int) -> list[str]:
    parts = []
    for index, (name, colour) in enumerate(entries):
        x, y = left + 190 * (index % columns), BOTTOM + 56 + 18 * (index // columns)
        parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" fill="{colour}"/>' + text(x + 16, y, name))
    return parts


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, colour: str = "#555") -> str:
    """A line of words; x and y in pixels, y of the base line."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(words)}</text>'


def nice(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten, with room above the bars for their labels."""
    value = max(value, 1e-9) * 1.08
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)
