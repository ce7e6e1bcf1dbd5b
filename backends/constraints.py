"""The place where structured output meets sampling: what may restrict the next token of one sequence.

Owns the Protocol only. An implementation compiles a schema or grammar into masks; engines ask it before each choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenMask(Protocol):
    """Which tokens may come next in one sequence."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """`(n_vocab,) bool`, True where a token may come; None when every token may."""
        ...

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen."""
        ...
