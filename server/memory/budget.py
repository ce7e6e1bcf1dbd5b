"""What the scheduler asks about bytes. Every answer is instant: no I/O, no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from server.memory.placement import Refused


class Budget(Protocol):
    """The ledger and the estimates, read only."""

    @property
    def free_bytes(self) -> int:
        """What is left of the budget; 0 while models hold more than it."""
        ...

    @property
    def over_bytes(self) -> int:
        """How much models hold above the budget."""
        ...

    def held_bytes(self, model: str) -> int:
        """What leaves with the model; 0 when it holds nothing."""
        ...

    def need_bytes(self, model: str, *, smaller_by: int) -> int | Refused:
        """What a load of the model would book, or why there is no room for it even when all leave who may.

        0 while its file has not been looked at: then the load itself will tell.
        """
        ...


class Unbounded:
    """The budget of a machine whose memory has no end: every model fits beside every other."""

    free_bytes = 0
    over_bytes = 0

    def held_bytes(self, model: str) -> int:
        """Nothing."""
        return 0

    def need_bytes(self, model: str, *, smaller_by: int) -> int | Refused:
        """Nothing."""
        return 0
