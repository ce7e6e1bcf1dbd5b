"""A step's rows of media: each sequence's in a pass of its own before the tokens', or all in one pass with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.generation.sequence import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence as Listed

    from backends.generation.cells import Cells
    from backends.generation.decoder import DecoderContext
    from backends.generation.sequence import Sequence
    from backends.generation.step_rows import StepRows


def is_embedded(sequence: Sequence) -> bool:
    """Whether the next row of a sequence is a medium's."""
    layout = sequence.request.layout
    return bool(layout.media) and sequence.phase is Phase.PREFILL and layout.at(sequence.n_past) is not None


def is_whole(sequence: Sequence) -> bool:
    """Whether the next row is of a medium whose rows see each other."""
    media = sequence.request.layout.at(sequence.n_past)
    return media is not None and media.embedding is not None and media.embedding.alone


def compute(rows: StepRows, sequences: Listed[Sequence], context: DecoderContext, cells: Cells[Sequence]) -> int:
    """Compute a step: 0, or 1 where the cells have no room for the rest of it.

    Sequences have their rows of media by then, whatever becomes of the tokens.
    """
    joins = context.embeddings is not None and context.embeddings.joins
    for index, count in rows.embedded:
        status = _embed(sequences[index], count, context)
        if status != 0:
            return status
        if not joins:
            _grown(sequences[index], count, cells)
    status = context.decode(rows.n_tokens, decoding=not rows.n_prefill) if rows.n_tokens or joins else 0
    if status == 0 and joins:
        for index, count in rows.embedded:
            _grown(sequences[index], count, cells)
    return status


def _grown(sequence: Sequence, count: int, cells: Cells[Sequence]) -> None:
    sequence.n_past += count
    cells.grow(sequence, count)


def _embed(sequence: Sequence, count: int, context: DecoderContext) -> int:
    media = sequence.request.layout.at(sequence.n_past)
    if media is None or media.embedding is None or context.embeddings is None:
        raise RuntimeError("rows of a medium were planned that no encoder has made")
    return context.embeddings.decode(
        media.embedding,
        sequence.n_past - media.first,
        count,
        slot=sequence.slot,
        position=sequence.request.layout.position(media.first),
    )
