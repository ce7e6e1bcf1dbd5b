"""How a cluster ends: what `up` notes for `down`, and the wait for nodes that drain, told of while it lasts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from server.cli.console import say
from server.memory.learned import data_folder

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from server.cluster.notices import Notice

LEAVE_MARGIN_S: Final = 15.0
"""Beyond the servers' own time for draining, until nodes are ended as they are."""
EDGE_WITHIN_S: Final = 20.0
"""Behind the nodes' end, for clients to read what they were answered."""
_POLL_S: Final = 0.3


@dataclass(frozen=True)
class ClusterNote:
    """Of the cluster on this machine, in a file: its process, its address, and what its end waits for."""

    pid: int
    url: str
    drain_s: float = 30.0
    waits_for: str = ""

    def save(self) -> None:
        """Raises OSError."""
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls) -> ClusterNote | None:
        """None where there is none, or none that can be read."""
        try:
            return cls(**json.loads(_path().read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def remove(cls) -> None:
        """There is no cluster any more."""
        _path().unlink(missing_ok=True)


def _path() -> Path:
    return data_folder() / "cluster.json"


class Signals:
    """How often this process was told to end, from now on. For the main thread.

    A handler writes a byte and takes no lock: it runs in the middle of whatever the main thread does, which may be
    the one that holds it.
    """

    def __init__(self) -> None:
        self._n = 0
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own handlers there
            signal.signal(number, self._count)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self._n += 1
        with contextlib.suppress(BlockingIOError):  # it is full of signals that nothing has waited for
            os.write(self._writes, b".")

    def told(self, *, times: int = 1, within_s: float | None = 0.0) -> bool:
        """Whether it was told so often, by then; None waits for it."""
        until = math.inf if within_s is None else time.monotonic() + within_s
        while self._n < times and (left_s := until - time.monotonic()) > 0:
            if select.select([self._reads], [], [], None if within_s is None else left_s)[0]:
                os.read(self._reads, 4096)
        return self._n >= times

    def once(self, within_s: float) -> bool:
        """Whether it was told, by then."""
        return self.told(within_s=within_s)

    def twice(self, within_s: float) -> bool:
        """Whether it was told once more: the first one asked for the end, this one for a quick one."""
        return self.told(times=2, within_s=within_s)


def until_drained(
    left: Callable[[], Sequence[Notice]],
    *,
    within_s: float,
    how: str,
    hurried: Callable[[float], bool],
    tell: Callable[[str], None],
) -> bool:
    """Wait until no node is left; whether that is so. What is waited for is told whenever it is otherwise.

    `how` is what is told of requests that run: until when, and what ends them. `hurried` waits so many seconds for a
    word that all is to end now.
    """
    until, before = time.monotonic() + within_s, ""
    while (nodes := left()) and time.monotonic() < until and not hurried(0.0):
        now = what_runs(nodes, how=how)
        if now != before:
            tell(now)
            before = now
        hurried(_POLL_S)
    return not nodes


def what_runs(nodes: Sequence[Notice], *, how: str) -> str:
    """One line on the nodes that are left."""
    n_running = sum(model.running for notice in nodes for model in notice.models.values())
    what = f"{_count(len(nodes), 'node')} left"
    if not n_running:
        return what
    return f"{what}: {_count(n_running, 'request')} {how}"


def end_cluster(
    serve: Any,
    application: str,
    left: Callable[[], Sequence[Notice]],
    note: ClusterNote,
    hurried: Callable[[float], bool],
) -> bool:
    """Wait for the nodes, then let the edge answer what it has left; whether both came to their end."""

    def tell(text: str) -> None:
        say(text)
        ClusterNote(note.pid, note.url, note.drain_s, text).save()

    how = f"may end within {note.drain_s:g} s. hint: another Ctrl-C or `onecard cluster down` ends them now"
    if not until_drained(left, within_s=note.drain_s + LEAVE_MARGIN_S, how=how, hurried=hurried, tell=tell):
        return False
    tell("all nodes have ended; Ray ends")
    return until_deleted(serve, application, hurried)


def until_deleted(serve: Any, application: str, hurried: Callable[[float], bool]) -> bool:
    """Have Serve end the application, whose nodes have ended; whether its edge has, too.

    It may have clients that do not read what they were answered.
    """
    serve.delete(application, _blocking=False)
    until = time.monotonic() + EDGE_WITHIN_S
    while (there := application in serve.status().applications) and time.monotonic() < until and not hurried(_POLL_S):
        pass
    return not there


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
