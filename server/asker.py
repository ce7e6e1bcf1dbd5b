"""Who asks: the id of the request that a task serves, its key's account, and its client's trace. Set by the door."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from server.accounts.account import Account, Admission


@dataclass(frozen=True)
class Asker:
    """One request."""

    request_id: str = ""
    """Empty for what the server does by itself."""
    traceparent: str = ""
    """As W3C's trace context has it; empty where the client has begun none."""
    account: Account | None = None
    """Whose models and usage they are; None for what the server does by itself."""
    admission: Admission | None = None
    """By which its jobs reserve tokens of the account; None for what no limit holds up."""
    background: bool = False
    """It has time: it is computed while nothing else is, and waits as long as that takes."""

    def may_use(self, *names: str) -> bool:
        """Whether the model of these names is one that this client may know of."""
        return self.account is None or self.account.may_use(names)


_ALONE: Final = Asker()
ASKER: Final[ContextVar[Asker]] = ContextVar("asker", default=_ALONE)
