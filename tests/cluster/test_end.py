"""What `onecard cluster` tells of its end, and when it stops waiting."""

from __future__ import annotations

import threading

from server.cli.cluster_end import ClusterNote, end_cluster, until_drained
from server.cluster.facts import HeldModel
from server.cluster.notices import Notice


def notice(node: str, running: int) -> Notice:
    return Notice(node, f"http://{node}", "1", 0, {"chat": HeldModel("ready", running=running)})


def test_what_is_waited_for_is_told_once_per_change():
    looks = [[notice("a", 2), notice("b", 1)], [notice("a", 2), notice("b", 1)], [notice("a", 0)], []]
    told: list[str] = []
    assert until_drained(lambda: looks.pop(0), within_s=30, how="run", hurried=threading.Event(), tell=told.append)
    assert told == ["2 nodes left: 3 requests run", "1 node left"]


def test_a_second_signal_ends_the_wait():
    hurried = threading.Event()
    left = until_drained(
        lambda: [notice("a", 2)], within_s=600, how="run", hurried=hurried, tell=lambda _: hurried.set()
    )
    assert not left, "nodes are left"


def test_hints_are_of_the_terminal_that_reads_them(tmp_path, monkeypatch):
    """Given a wait that `up` tells and `down` repeats, then the hint holds in both: Ctrl-C in `down` ends no node."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    hurried = threading.Event()
    notes: list[ClusterNote | None] = []

    def left() -> list[Notice]:
        notes.append(ClusterNote.read())
        if len(notes) == 2:
            hurried.set()
        return [notice("a", 1)]

    assert not end_cluster(None, "a", left, ClusterNote(7, "u", 5.0), hurried)
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
