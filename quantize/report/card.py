"""The figures of a report and their printed forms; nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from backends.messages import Device
from quantize.scores.compare import Scores
from quantize.words import size

CONTEXTS = (4096, 16384, 32768)
"""For which memory is predicted, and for the one that `--fit` counts with."""


def contexts_for(longest: int | None, wanted: int | None) -> tuple[int, ...]:
    """For which memory is predicted: a model that has less than the first of CONTEXTS is estimated at all it has."""
    usual = CONTEXTS if not longest or longest >= CONTEXTS[0] else (longest,)
    asked = () if wanted is None else (min(wanted, longest or wanted),)
    return tuple(sorted({*usual, *asked}))


@dataclass(frozen=True)
class Line:
    """One output, or the source itself."""

    name: str
    type_name: str
    n_bytes: int
    bits_per_weight: float
    memory_bytes: tuple[int | None, ...]
    """Predicted at each of the card's contexts, None where nothing predicts it."""
    scores: Scores | None
    remarks: tuple[str, ...] = ()
    """Where it is not what its name says, a sentence each."""


@dataclass(frozen=True)
class Card:
    """A report."""

    model: str
    text: str
    n_tokens: int
    budget_bytes: int | None
    device: Device
    contexts: tuple[int, ...]
    """Tokens of context that memory is predicted for."""
    lines: tuple[Line, ...]
    """The source first."""


_START = ("TYPE", "SIZE", "BITS/W")
_MEASURED = (
    "PERPLEXITY",
    "KL MEAN",
    "KL 99.9%",
    "SAME TOP-1",
    "PREFILL/s",
    "DECODE/s",
)


def memory_headings(contexts: Sequence[int]) -> tuple[str, ...]:
    """`MEMORY 512`, `MEMORY 4k`, `16k`: which memory is said once."""
    said = [f"{context // 1024}k" if context % 1024 == 0 else str(context) for context in contexts]
    return (f"MEMORY {said[0]}", *said[1:])


def rows(card: Card) -> list[tuple[str, ...]]:
    """Heading and one row of texts per line."""
    return [(*_START, *memory_headings(card.contexts), *_MEASURED), *(_row(line) for line in card.lines)]


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
        "divergence (nats per token) and top-1 agreement are against the first line; memory is predicted for "
        f"one request on {card.device}.",
        "",
        "| " + " | ".join(heading) + " |",
        "|---" + "|--:" * (len(heading) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in body),
    ]
    if found := [remark for line in card.lines for remark in line.remarks]:
        lines += ["", *(f"- {remark}." for remark in found)]
    if picture is not None:
        lines += ["", f"![KL divergence against size]({picture})"]
    return "\n".join(lines) + "\n"


def as_json(card: Card) -> str:
    """Every figure, unrounded."""
    return json.dumps(asdict(card), indent=2) + "\n"
