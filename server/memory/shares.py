"""Who may keep how many bytes of cached prefixes, and what leaves when there is less room for them. Pure.

Every loaded model has an equal share; what models that are not loaded have left may take one share too, and what it
does not take is the others'. Of those files the ones with the highest score stay. A worker's bytes count until it
has said that it holds no more: so what is reserved is never less than what lies there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass(frozen=True)
class Kept:
    """A file that a worker which is gone has left."""

    key: str
    n_bytes: int
    score: float
    """Microseconds of computing it saves per byte, likelihood counted."""


@dataclass
class _Grant:
    """What the worker of a loaded model may hold."""

    confirmed: int = 0
    asked: deque[int] = field(default_factory=deque)
    """Bounds it was told and has not confirmed, oldest first."""

    @property
    def last(self) -> int:
        return self.asked[-1] if self.asked else self.confirmed

    @property
    def reserved_bytes(self) -> int:
        return max([self.confirmed, *self.asked])


@dataclass(frozen=True)
class Change:
    """What has to happen: new bounds for workers, and the files that leave."""

    bounds: dict[str, int]
    leaving: list[Kept]


class Shares:
    """See the module's text."""

    def __init__(self) -> None:
        self._grants: dict[str, _Grant] = {}
        self._kept: dict[str, list[Kept]] = {}

    @property
    def reserved_bytes(self) -> int:
        """The most that all workers and files can take at this moment."""
        return sum(grant.reserved_bytes for grant in self._grants.values()) + self.kept_bytes

    @property
    def kept_bytes(self) -> int:
        """What the files of models that are not loaded take."""
        return sum(file.n_bytes for files in self._kept.values() for file in files)

    @property
    def n_loaded(self) -> int:
        """Workers that may hold something."""
        return len(self._grants)

    def has(self, model: str) -> bool:
        """Whether a worker of it may hold anything."""
        return model in self._grants

    def join(self, model: str, room: int) -> tuple[int, list[Kept]]:
        """A worker is about to start: what it may hold to begin with, and which files leave for that."""
        own = self._kept.pop(model, [])
        self._grants[model] = _Grant()
        leaving = self._drop(room)
        bound = max(0, min(self._targets(room)[model], room - self.reserved_bytes))
        self._grants[model] = _Grant(confirmed=bound)
        return bound, leaving + _beyond(own, bound)

    def leave(self, model: str, files: Sequence[Kept]) -> None:
        """The worker is gone and has left these."""
        self._grants.pop(model, None)
        self._kept[model] = list(files)

    def forget(self, model: str) -> None:
        """The model is no more, and neither are its files."""
        self._grants.pop(model, None)
        self._kept.pop(model, None)

    def confirm(self, model: str, n_bytes: int) -> None:
        """The worker holds no more than that; bounds are confirmed in the order in which they were told."""
        grant = self._grants.get(model)
        if grant is not None and grant.asked:
            grant.asked.popleft()
            grant.confirmed = n_bytes

    def fit(self, room: int, *, listening: Collection[str]) -> Change:
        """Share so much room out among those who listen; no model gets more before others have made room for it."""
        change = Change({}, self._drop(room))
        targets = {model: target for model, target in self._targets(room).items() if model in listening}
        for model, target in targets.items():
            if target < self._grants[model].last:
                change.bounds[model] = target
                self._grants[model].asked.append(target)
        for model, target in targets.items():
            grant = self._grants[model]
            more = min(target - grant.reserved_bytes, room - self.reserved_bytes)
            if target > grant.last and more > 0:
                change.bounds[model] = grant.reserved_bytes + more
                grant.asked.append(grant.reserved_bytes + more)
        return change

    def lessen(self, model: str, n_bytes: int) -> Change:
        """Let one worker hold no more than that, for whatever reason."""
        grant = self._grants[model]
        if n_bytes >= grant.last:
            return Change({}, [])
        grant.asked.append(n_bytes)
        return Change({model: n_bytes}, [])

    def _targets(self, room: int) -> dict[str, int]:
        """An equal part for each loaded model of what the files of the others, one part at most, leave."""
        n = len(self._grants)
        if not n:
            return {}
        for_others = min(self.kept_bytes, max(room, 0) // (n + 1))
        return dict.fromkeys(self._grants, (max(room, 0) - for_others) // n)

    def _drop(self, room: int) -> list[Kept]:
        """Let files of models that are not loaded leave until they take no more than their part."""
        leaving = _beyond(
            [file for files in self._kept.values() for file in files], max(room, 0) // (len(self._grants) + 1)
        )
        gone = set(leaving)
        if gone:
            self._kept = {model: [f for f in files if f not in gone] for model, files in self._kept.items()}
        return leaving


def _beyond(files: list[Kept], n_bytes: int) -> list[Kept]:
    """Those of the lowest score, until the rest takes no more than that."""
    excess = sum(file.n_bytes for file in files) - n_bytes
    leaving = []
    for file in sorted(files, key=lambda f: (f.score, f.key)):
        if excess <= 0:
            break
        leaving.append(file)
        excess -= file.n_bytes
    return leaving
