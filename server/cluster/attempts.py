"""What one request has met on its way to an answer, and which node it is given to next. Acts on nothing.

Nodes that lost it or were full are passed over. A node that is known and does not answer is waited for, because its
server is started again: only where none comes in time, the request is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from server.cluster.forwarding import ElsewhereError

if TYPE_CHECKING:
    import httpx2

    from server.cluster.facts import Ask
    from server.cluster.router import Router

MOST_LOST: Final = 3
"""Nodes that end with one request, which may be what ends them."""


@dataclass
class Attempts:
    """Of one request. `fixed` are the nodes that alone can answer it, the best first; None where any can."""

    ask: Ask
    fixed: Sequence[str] | None
    in_turn: bool = False
    """The next one of `fixed` is asked only where the one before has said that it is another's."""
    repeatable: bool = True
    """It may be given to a node that may have had it already."""
    n_asked: int = 0
    n_lost: int = 0
    """Nodes that ended, or whose connection did, while they had it."""
    refusal: tuple[httpx2.Response, str] | None = None
    """What a node answered, and which, where it was no token."""
    _lost: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _over: bool = False

    def next(self, router: Router, now: float) -> tuple[str, str] | None:
        """A node and why it is this one; None while none can be asked."""
        if self.over:
            return None
        if self.fixed is not None:
            return self._next_fixed(self.fixed, router, now)
        choice = router.choose(self.ask, now, without=frozenset(self._refused | self._lost))
        if choice is None:  # those that lost it may have come back
            choice = router.choose(self.ask, now, without=frozenset(self._refused))
        return None if choice is None else (choice.node, choice.reason)

    def met(self, node: str, why: ElsewhereError) -> None:
        """The node gave no token."""
        if why.refusal is not None:
            is_last = _is_draining(why.refusal) and self.refusal is not None
            self.refusal = self.refusal if is_last else (why.refusal, node)
            self._refused.add(node)
            self._over |= self.in_turn and not _is_kept_elsewhere(why.refusal)
        elif not why.unreachable:
            self._lost.add(node)
            self.n_lost += 1
            self._over |= not self.repeatable

    @property
    def over(self) -> bool:
        """It is given to no further node."""
        return self._over or self.n_lost >= MOST_LOST

    @property
    def may_wait(self) -> bool:
        """No node has refused it but such as end, and another one may come."""
        return not self.over and (self.refusal is None or _is_draining(self.refusal[0]))

    def _next_fixed(self, nodes: Sequence[str], router: Router, now: float) -> tuple[str, str] | None:
        left = [node for node in nodes if node not in self._refused]
        if self.in_turn:
            left = left[:1]
        left.sort(key=lambda node: node in self._lost)
        return next(((node, "owner") for node in left if router.is_reachable(node, now)), None)


def _is_draining(refusal: httpx2.Response) -> bool:
    return b'"draining"' in refusal.content


def _is_kept_elsewhere(refusal: httpx2.Response) -> bool:
    """Another node of the same machine holds the folder of files."""
    return b'"files_elsewhere"' in refusal.content
