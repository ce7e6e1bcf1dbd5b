"""What `onecard cluster` tells of its end, and when it stops waiting."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from server.cli import cluster_end
from server.cli.cluster_end import ClusterNote, Signals, end_cluster, until_deleted, until_drained
from server.cli.clusters import _tell_joined
from server.cli.console import CliError, ExitCode
from server.cluster.facts import HeldModel
from server.cluster.notices import Notice


def notice(node: str, running: int) -> Notice:
    return Notice(node, f"http://{node}", "1", 0, {"chat": HeldModel("ready", running=running)})


def never(_within_s: float) -> bool:
    return False


def test_what_is_waited_for_is_told_once_per_change():
    looks = [[notice("a", 2), notice("b", 1)], [notice("a", 2), notice("b", 1)], [notice("a", 0)], []]
    told: list[str] = []
    assert until_drained(lambda: looks.pop(0), within_s=30, how="run", hurried=never, tell=told.append)
    assert told == ["2 nodes left: 3 requests run", "1 node left"]


def test_a_second_signal_ends_the_wait():
    told: list[str] = []
    left = until_drained(
        lambda: [notice("a", 2)], within_s=600, how="run", hurried=lambda _: bool(told), tell=told.append
    )
    assert not left, "nodes are left"


def test_a_handler_of_signals_waits_for_nothing_that_the_interrupted_thread_holds():
    """Given a signal at every line of the wait, then it ends in time, and all were counted."""
    child = """
import signal, sys
from server.cli.cluster_end import Signals
signals = Signals()
def interrupt(frame, event, _):
    signal.raise_signal(signal.SIGINT)
    return interrupt
sys.settrace(interrupt)
signals.told(times=10**9, within_s=0.3)
sys.settrace(None)
print(signals.twice(0.0), signals.told(times=10**9))
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False\n", done.stderr


def test_signals_are_counted_and_awaited():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signals = Signals()
        assert not signals.once(0.0)
        signal.raise_signal(signal.SIGTERM)
        assert signals.told(within_s=None)
        assert not signals.twice(0.01)
        signal.raise_signal(signal.SIGINT)
        assert signals.twice(600)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Serve:
    """Ray's, whose application goes after so many looks; never where none reads."""

    looks: float
    applications: dict[str, str] = field(default_factory=lambda: {"onecard": "RUNNING"})
    blocked: list[bool] = field(default_factory=list)

    def delete(self, name: str, *, _blocking: bool) -> None:
        self.blocked.append(_blocking)

    def status(self) -> Serve:
        self.looks -= 1
        if self.looks < 0:
            self.applications.clear()
        return self


@pytest.mark.parametrize(("looks", "hurried", "ends"), [(3, False, True), (math.inf, True, False)])
def test_an_edge_whose_clients_do_not_read_holds_nothing_up_for_long(looks, hurried, ends):
    serve = Serve(looks)
    assert until_deleted(serve, "onecard", lambda _: hurried) is ends
    assert serve.blocked == [False], "Ray's own wait heeds no signal"


def test_an_edge_that_does_not_end_is_waited_for_no_longer_than_its_time(monkeypatch):
    monkeypatch.setattr(cluster_end, "EDGE_WITHIN_S", 0.0)
    assert until_deleted(Serve(looks=10_000), "onecard", lambda _: False) is False


def test_a_signal_while_nodes_start_on_a_ray_that_runs_on_is_told_as_one(capsys):
    with pytest.raises(CliError, match=r"go on starting.*hint: `onecard cluster down --address h:1` ends them") as why:
        _tell_joined("h:1", "2 nodes serve http://h:8000/v1", was_told=True)
    assert why.value.code is ExitCode.INTERRUPTED
    assert capsys.readouterr().out == ""
    _tell_joined("h:1", "2 nodes serve http://h:8000/v1", was_told=False)
    assert capsys.readouterr().out.startswith("2 nodes serve http://h:8000/v1\n")


def test_hints_are_of_the_terminal_that_reads_them(tmp_path, monkeypatch):
    """Given a wait that `up` tells and `down` repeats, then the hint holds in both: Ctrl-C in `down` ends no node."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    notes: list[ClusterNote | None] = []

    def left() -> list[Notice]:
        notes.append(ClusterNote.read())
        return [notice("a", 1)]

    assert not end_cluster(None, "a", left, ClusterNote(7, "u", 5.0), lambda _: len(notes) == 2)
    assert notes[1] is not None
    assert notes[1].waits_for == (
        "1 node left: 1 request may end within 5 s. hint: another Ctrl-C or `onecard cluster down` ends them now"
    )


def test_a_note_that_is_none_is_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert ClusterNote.read() is None
    ClusterNote(7, "http://here", 5.0, "1 node left").save()
    assert ClusterNote.read() == ClusterNote(7, "http://here", 5.0, "1 node left")
    for path in tmp_path.rglob("cluster.json"):
        path.write_text('{"pid": 7')
    assert ClusterNote.read() is None
    ClusterNote.remove()
    ClusterNote.remove()
