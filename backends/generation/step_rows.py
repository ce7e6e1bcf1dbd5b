"""The batch of one step: what running sequences would compute, and the rows that are written for what is planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backends.generation.batching import Demand
from backends.generation.embedding_step import is_embedded, is_whole
from backends.generation.pace import Chunk
from backends.generation.sequence import Phase
from backends.plan import SCORED_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.generation.batching import Share
    from backends.generation.decoder import DecoderContext
    from backends.generation.pace import Pace
    from backends.generation.sequence import Sequence


class StepRows(NamedTuple):
    """What one step computes."""

    shares: list[Share]
    """Of tokens."""
    embedded: list[Share]
    """Of rows of media, each in a pass of its own before the tokens'."""
    outputs: list[tuple[Sequence, int]]
    """Who has logits, and in which row of the batch."""
    n_tokens: int
    """Rows of the batch."""
    n_prefill: int
    """Those that are of prompts."""
    n_scored: int
    """Outputs that only score a prompt."""
    n_drafted: int = 0
    """Outputs behind drafted tokens."""


def demands_of(sequences: Iterable[Sequence], now_us: float) -> list[Demand]:
    """What the sequences would like to compute next; who scores its prompt gets a few rows at a time."""
    demands = []
    most_scored = SCORED_ROWS
    for index, sequence in enumerate(sequences):
        if sequence.phase is Phase.DECODE:
            demands.append(Demand(index, 1, True, slot=sequence.slot))
        elif sequence.phase is Phase.PREFILL:
            past = sequence.n_past
            n_tokens, waited_us = sequence.n_ahead, now_us - sequence.since_us
            if sequence.request.scoring:
                n_tokens = min(n_tokens, most_scored)
                most_scored -= n_tokens
            if n_tokens:
                slot, fixed = sequence.slot, sequence.request.scoring
                apart, whole = is_embedded(sequence), is_whole(sequence)
                hurried = sequence.hurried
                demands.append(Demand(index, n_tokens, False, past, waited_us, slot, fixed, whole, apart, hurried))
    return demands


def is_mixed(sequences: Iterable[Sequence]) -> bool:
    """Whether some have time and others have not."""
    return len({sequence.background for sequence in sequences}) == 2


def foreground_first(demands: list[Demand], sequences: list[Sequence]) -> tuple[list[Demand], bool]:
    """What is wanted by those that have no time; all of it, and False, where only others want anything."""
    urgent = [demand for demand in demands if not sequences[demand.sequence].background]
    return (urgent, True) if urgent else (demands, False)


def filled(shares: list[Share], sequences: list[Sequence], context: DecoderContext) -> StepRows:
    """Write the batch."""
    outputs: list[tuple[Sequence, int]] = []
    embedded: list[Share] = []
    row = n_prefill = n_scored = n_drafted = 0
    for share in shares:
        index, count = share
        sequence = sequences[index]
        if is_embedded(sequence):
            embedded.append(share)
            n_prefill += count
            continue
        past = sequence.n_past
        end = row + count
        if sequence.phase is Phase.DECODE:
            context.tokens[row] = sequence.token
            context.positions[row] = past - sequence.n_saved
            context.outputs[row:end] = 1
            outputs.append((sequence, row))
            if count > 1:
                context.tokens[row + 1 : end] = sequence.draft
                context.positions[row + 1 : end] = range(past + 1 - sequence.n_saved, past + count - sequence.n_saved)
                outputs += [(sequence, place) for place in range(row + 1, end)]
                n_drafted += count - 1
        else:
            target = sequence.target
            context.tokens[row:end] = target[past : past + count]
            context.positions[row:end] = sequence.request.layout.positions(past, count)
            context.outputs[row:end] = 0
            n_prefill += count
            if sequence.request.echo is not None:
                scored = [row + position - past for position in sequence.request.echo.wanted(past, count)]
                context.outputs[scored] = 1
                outputs += [(sequence, place) for place in scored]
                n_scored += len(scored)
            if past + count == target.size:
                context.outputs[end - 1] = 1
                outputs.append((sequence, end - 1))
        context.sequences[row:end] = sequence.slot
        row = end
    tokens = [share for share in shares if share not in embedded] if embedded else shares
    return StepRows(tokens, embedded, outputs, row, n_prefill, n_scored, n_drafted)


def learn(rows: StepRows, sequences: list[Sequence], pace: Pace, duration_us: float) -> None:
    """Take in what a step without drafts took, in microseconds; its tokens are not yet in `n_past`."""
    if not rows.n_prefill:
        pace.learn_decode(len(rows.shares), duration_us)
        return
    chunks = [Chunk(sequences[index].n_past - count, count) for index, count in rows.embedded]
    for index, count in rows.shares:
        sequence = sequences[index]
        if sequence.phase is Phase.PREFILL:
            if sequence.request.scoring:  # its few tokens cost more than those of a usual chunk
                return
            chunks.append(Chunk(sequence.n_past, count))
    n_decode = len(rows.shares) + len(rows.embedded) - len(chunks)
    pace.learn(n_decode=n_decode, chunks=chunks, duration_us=duration_us)
