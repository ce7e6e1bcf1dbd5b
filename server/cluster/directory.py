"""What nodes have told of themselves, kept in one place for all edges, and whether the cluster ends. Knows no Ray.

The place is lost with its process, and the next one knows nothing: who asks it goes on with what it knew before, until
every node that lives has told the new one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from server.cluster.notices import Notice

GONE_S: Final = 60.0
"""A node that says nothing for so long is forgotten."""
SETTLED_S: Final = 3.0
"""So old, a directory has heard of every node: each tells of itself twice a second."""


@dataclass(frozen=True)
class Told:
    """What a directory says."""

    notices: tuple[Notice, ...]
    ends: bool
    """The whole cluster does."""
    settled: bool
    """Nodes that are not among them are gone; a directory that has just begun may not have heard of them."""


class Directory:
    """What nodes have told it since it began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._notices: dict[str, tuple[float, Notice]] = {}
        self._ends = False

    def put(self, notice: Notice) -> None:
        """A node as it is now."""
        self._notices[notice.node] = (time.monotonic() - notice.age_s, notice)

    def drop(self, node: str) -> None:
        """A node ends."""
        self._notices.pop(node, None)

    def begin(self) -> None:
        """A cluster comes up; an end that was told before was another one's."""
        self._ends = False

    def end(self) -> Told:
        """The whole cluster ends: edges take no request, and nodes drain. Who ends it says so at every look."""
        self._ends = True
        return self.told()

    def ends(self) -> bool:
        """Whether it does: all that a node has to know."""
        return self._ends

    def told(self) -> Told:
        """Every node, with the age of what it told."""
        now = time.monotonic()
        self._notices = {name: kept for name, kept in self._notices.items() if now - kept[0] < GONE_S}
        notices = tuple(replace(notice, age_s=now - at) for at, notice in self._notices.values())
        return Told(notices, self._ends, now - self._began >= SETTLED_S)


class Heard:
    """What one process has heard of all directories so far."""

    def __init__(self) -> None:
        self.ends = False
        """Once it was told it stays so, although the next directory does not know."""
        self._known: dict[str, tuple[float, Notice]] = {}

    def take(self, told: Told) -> list[Notice]:
        """Every node that there is, with the age of what is known of it."""
        now = time.monotonic()
        self.ends = self.ends or told.ends
        new = {notice.node: (now - notice.age_s, notice) for notice in told.notices}
        self._known = new if told.settled else {**self._known, **new}
        return [replace(notice, age_s=now - at) for at, notice in self._known.values()]
