"""Who contributes how many tokens to the next forward pass of an engine. Pure planning, no engine types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Demand(NamedTuple):
    """What one sequence wants: a single token when it decodes, the rest of its prompt when it prefills."""

    sequence: int
    n_tokens: int
    decoding: bool


class Share(NamedTuple):
    """What one sequence gets in this step."""

    sequence: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Batcher:
    """Decode first, then prefill with what is left of the step.

    `max_tokens` bounds a step in which nobody decodes; `max_prefill_beside_decode` bounds the prompt tokens of a step
    that others are waiting for, so that a long prompt does not freeze the running streams.
    """

    max_tokens: int = 512
    max_prefill_beside_decode: int = 128

    def plan(self, demands: Sequence[Demand]) -> list[Share]:
        """Shares for one step: every decoding sequence one token, then prompts in the order given, oldest first.

        The sum never exceeds `max_tokens`, and no share is empty.
        """
        shares = [Share(d.sequence, 1) for d in demands if d.decoding]
        room = self.max_tokens - len(shares)
        if shares:
            room = min(room, self.max_prefill_beside_decode)
        for demand in demands:
            if room <= 0:
                break
            if not demand.decoding:
                n_tokens = min(demand.n_tokens, room)
                shares.append(Share(demand.sequence, n_tokens))
                room -= n_tokens
        return shares
