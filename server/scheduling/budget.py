"""What the scheduler asks about bytes. Every answer is instant: no I/O, no waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from backends.plan import Amount


@dataclass(frozen=True)
class Refused:
    """Why a model is not loaded: `cannot_fit` for ever, `memory_busy` as long as others hold the memory."""

    code: Literal["cannot_fit", "memory_busy"]
    message: str


class Budget(Protocol):
    """The ledger and the estimates, read only. Each answer has a side for either memory."""

    @property
    def free(self) -> Amount:
        """What is left of the budgets; nothing of one that is exceeded."""
        ...

    @property
    def over(self) -> Amount:
        """How much models hold above the budgets."""
        ...

    @property
    def exceeded(self) -> bool:
        """Whether that is anything; asked at every decision."""
        ...

    def held(self, model: str) -> Amount:
        """What leaves with the model; nothing when it holds nothing."""
        ...

    def need(self, model: str, *, smaller_by: int, context: int = 0) -> Amount | Refused:
        """What a load of the model would reserve, or why there is no room for it even when all leave who may.

        `context`: tokens it has to hold at least; 0: as many as it begins with. Nothing while the model's file has not
        been looked at: then the load itself will tell.
        """
        ...


class Unbounded:
    """The budget of a machine whose memory has no end: every model fits beside every other."""

    free = Amount()
    over = Amount()
    exceeded = False

    def held(self, model: str) -> Amount:
        """Nothing."""
        return Amount()

    def need(self, model: str, *, smaller_by: int, context: int = 0) -> Amount | Refused:
        """Nothing."""
        return Amount()
