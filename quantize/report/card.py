"""The figures of a report and their printed forms; nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from quantize.scores.compare import Scores
from quantize.words import size

CONTEXTS = (4096, 16384, 32768)
"""For which memory is predicted."""


@dataclass(frozen=True)
class Line:
    """One output, or the source itself."""

    name: str
    type_name: str
    n_bytes: int
    bits_per_weight: float
    memory_bytes: tuple[int | None, ...]
    """Predicted at each of CONTEXTS, None where nothing predicts it."""
    scores: Scores | None


@dataclass(frozen=True)
class Card:
    """A report."""

    model: str
    text: str
    n_tokens: int
    budget_bytes: int | None
    lines: tuple[Line, ...]
    """The source first."""


_HEADINGS = (
    "TYPE",
    "SIZE",
    "BITS/W",
    "MEMORY 4k",
    "16k",
    "32k",
    "PERPLEXITY",
    "KL MEAN",
    "KL 99.9%",
    "SAME TOP-1",
    "PREFILL/s",
    "DECODE/s",
)


def rows(card: Card) -> list[tuple[str, ...]]:
    """Heading and one row of texts per line."""
    return [_HEADINGS, *(_row(line) for line in card.lines)]


def _row(line: Line) -> tuple[str, ...]:
    memory = tuple("-" if n is None else size(n) for n in line.memory_bytes)
    start = (line.type_name, size(line.n_bytes), f"{line.bits_per_weight:.2f}", *memory)
    if line.scores is None:
        return (*start, *("-",) * 6)
    quality = line.scores.quality
    return (
        *start,
        f"{quality.perplexity:.3f} ±{quality.perplexity_error:.2f}",
        f"{quality.kl_mean:.5f}",
        f"{quality.kl_p999:.3f}",
        f"{quality.agreement:.2%}",
        f"{line.scores.prefill_per_s:.0f}",
        f"{line.scores.decode_per_s:.1f}",
    )


def as_table(card: Card) -> str:
    """For a terminal."""
    return aligned(rows(card))


def aligned(texts: Sequence[tuple[str, ...]]) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    )


def as_markdown(card: Card, picture: str | None = None) -> str:
    """A page of its own."""
    heading, *body = rows(card)
    lines = [
        f"# {card.model}: what each type costs",
        "",
        f"Measured over {card.n_tokens} tokens of {card.text}, each with at least half a window before it. KL "
        "divergence (nats per token) and top-1 agreement are against the first line; memory is predicted.",
        "",
        "| " + " | ".join(heading) + " |",
        "|---" + "|--:" * (len(heading) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in body),
    ]
    if picture is not None:
        lines += ["", f"![KL divergence against size]({picture})"]
    return "\n".join(lines) + "\n"


def as_json(card: Card) -> str:
    """Every figure, unrounded."""
    return json.dumps(asdict(card) | {"contexts": CONTEXTS}, indent=2) + "\n"
