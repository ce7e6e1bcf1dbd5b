"""The report of a training as a picture: loss by step, and what the evaluation said; SVG without any library. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from server.tuning.store import StepRow

_WIDTH: Final = 860
_HEIGHT: Final = 420
_LEFT: Final = 70
_RIGHT: Final = 820
_TOP: Final = 70
_BOTTOM: Final = 350
_BLUE: Final = "#2457a6"
_RED: Final = "#c0392b"
_MOST_POINTS: Final = 1000
"""Of the curve: of more steps each point is a mean."""


def as_svg(name: str, rows: Sequence[StepRow]) -> str:
    """The file's text."""
    losses = _thinned([(row.step, row.loss) for row in rows if row.loss is not None and math.isfinite(row.loss)])
    valid = [(row.step, row.valid_loss) for row in rows if row.valid_loss is not None and math.isfinite(row.valid_loss)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 28, name, size=16),
        *(_chart(losses, valid) if losses else [_text(_LEFT, 60, "no step was done")]),
        _summary(rows),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _chart(losses: Sequence[tuple[int, float]], valid: Sequence[tuple[int, float]]) -> list[str]:
    most_steps = max(losses[-1][0], 1)
    most = max(loss for _, loss in (*losses, *valid)) or 1.0

    def x(step: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / most_steps

    def y(loss: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * loss / most

    parts = []
    for i in range(5):
        loss = most * i / 4
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#e3e3e3"/>')
        parts.append(_text(_LEFT - 8, y(loss) + 4, f"{loss:.3g}", anchor="end"))
        step = round(most_steps * i / 4)
        parts.append(_text(x(step), _BOTTOM + 20, str(step), anchor="middle"))
    parts.append(_line([(x(step), y(loss)) for step, loss in losses], _BLUE))
    parts.append(_line([(x(step), y(loss)) for step, loss in valid], _RED))
    parts += [f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="4" fill="{_RED}"/>' for step, loss in valid]
    parts += [_text(_LEFT, 52, "training loss", colour=_BLUE), _text(_LEFT + 110, 52, "evaluation loss", colour=_RED)]
    return parts


def _summary(rows: Sequence[StepRow]) -> str:
    told = f"{rows[-1].step} steps, {rows[-1].tokens} tokens" if rows else "0 steps"
    evaluated = [row for row in rows if row.perplexity is not None]
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        told += (
            f"; perplexity {first.perplexity:.4g} after step {first.step}, {last.perplexity:.4g} after step {last.step}"
        )
    return _text(_LEFT, _BOTTOM + 48, told)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    per_point = -(-len(points) // _MOST_POINTS) or 1
    groups = [points[i : i + per_point] for i in range(0, len(points), per_point)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def _line(points: Iterable[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, colour: str = "#333") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(words)}</text>'
