"""Which inputs share the next forward pass of an embedding engine. Pure planning, no engine types."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def pack(queues: Sequence[Sequence[int]], *, max_tokens: int, max_inputs: int, padded: bool = False) -> list[int]:
    """How many inputs to take from the head of each queue; `queues` holds the lengths of each job's inputs in tokens.

    One input of every queue in turn, so that a job of one input never stands behind the thousand of another. A queue
    whose next input does not fit is left for this pass. The very first input always goes, also when it is longer than
    `max_tokens`: rotate the queues between passes, and none waits for ever. `padded` counts every input at the length
    of the longest, for libraries that compute rectangles.
    """
    taken = [0] * len(queues)
    n_inputs = n_tokens = longest = 0
    turns = list(range(len(queues)))
    while turns and n_inputs < max_inputs:
        still: list[int] = []
        for queue in turns[: max_inputs - n_inputs]:
            if taken[queue] == len(queues[queue]):
                continue
            length = queues[queue][taken[queue]]
            widest = max(longest, length)
            cost = widest * (n_inputs + 1) if padded else n_tokens + length
            if n_inputs and cost > max_tokens:
                continue
            taken[queue] += 1
            n_inputs, n_tokens, longest = n_inputs + 1, n_tokens + length, widest
            still.append(queue)
        turns = still
    return taken
