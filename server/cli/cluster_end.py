"""How a cluster ends: what `up` notes for `down`, and the wait for nodes that drain, told of while it lasts."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from server.cli.console import say
from server.memory.learned import data_folder

if TYPE_CHECKING:
    from pathlib import Path

    from server.cluster.notices import Notice

LEAVE_MARGIN_S: Final = 15.0
"""Beyond the servers' own time for draining, until nodes are ended as they are."""
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


def signals() -> tuple[threading.Event, threading.Event]:
    """Set by the first signal to end, and by a second one."""
    told, hurried = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own handlers there
        signal.signal(number, lambda *_: (hurried if told.is_set() else told).set())
    return told, hurried


def until_drained(
    left: Callable[[], Sequence[Notice]],
    *,
    within_s: float,
    how: str,
    hurried: threading.Event,
    tell: Callable[[str], None],
) -> bool:
    """Wait until no node is left; whether that is so. What is waited for is told whenever it is otherwise.

    `how` is what is told of requests that run: until when, and what ends them.
    """
    until, before = time.monotonic() + within_s, ""
    while (nodes := left()) and time.monotonic() < until and not hurried.is_set():
        now = what_runs(nodes, how=how)
        if now != before:
            tell(now)
            before = now
        hurried.wait(_POLL_S)
    return not nodes


def what_runs(nodes: Sequence[Notice], *, how: str) -> str:
    """One line on the nodes that are left."""
    n_running = sum(model.running for notice in nodes for model in notice.models.values())
    what = f"{_count(len(nodes), 'node')} left"
    if not n_running:
        return what
    return f"{what}: {_count(n_running, 'request')} {how}"


def end_cluster(
    serve: Any, application: str, left: Callable[[], Sequence[Notice]], note: ClusterNote, hurried: threading.Event
) -> bool:
    """Wait for the nodes, then let the edge answer what it has left; whether both came to their end."""

    def tell(text: str) -> None:
        say(text)
        ClusterNote(note.pid, note.url, note.drain_s, text).save()

    how = f"may end within {note.drain_s:g} s. hint: another Ctrl-C or `onecard cluster down` ends them now"
    if not until_drained(left, within_s=note.drain_s + LEAVE_MARGIN_S, how=how, hurried=hurried, tell=tell):
        return False
    tell("all nodes have ended; Ray ends")
    with contextlib.suppress(TimeoutError):
        serve.delete(application)
        return True
    return False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
