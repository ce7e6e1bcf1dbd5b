"""The place where structured output meets sampling: what may restrict the next token of one sequence.

Owns the Protocol that samplers see; `backends.constraints.guides` makes it of a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenMask(Protocol):
    """Which tokens may come next in one sequence. Both methods raise JobError where the constraint is too costly."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """`(n_vocab,) bool`, True where a token may come; None when every token may. Not for an ended mask."""
        ...

    def n_fitting(self, tokens: list[int]) -> int:
        """How many of these tokens may follow each other from here, as far as that is known; it stays where it is."""
        ...

    def forced(self) -> list[int]:
        """Tokens that have to follow, or do if the text is spelled as usual; empty where there is a choice."""
        ...

    def instead(self, token: int) -> int:
        """The token to write where this allowed one was chosen: an end that may not be yet closes the reasoning."""
        ...

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen."""
        ...

    @property
    def ended(self) -> bool:
        """The text is complete: nothing but the end may follow, so none needs to be sampled."""
        ...

    @property
    def called(self) -> bool:
        """The text so far calls a tool."""
        ...

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the text that were reasoning."""
        ...
