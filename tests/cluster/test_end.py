"""What `onecard cluster` tells of its end, and when it stops waiting."""

from __future__ import annotations

import threading

from server.cli.cluster_end import ClusterNote, until_drained
from server.cluster.facts import HeldModel
from server.cluster.notices import Notice


def notice(node: str, running: int) -> Notice:
    return Notice(node, f"http://{node}", "1", 0, {"chat": HeldModel("ready", running=running)})


def test_what_is_waited_for_is_told_once_per_change():
    looks = [[notice("a", 2), notice("b", 1)], [notice("a", 2), notice("b", 1)], [notice("a", 0)], []]
    told: list[str] = []
    assert until_drained(lambda: looks.pop(0), drain_s=30, hurried=threading.Event(), tell=told.append)
    assert told == ["2 nodes left: 3 requests may end within 30 s. hint: another Ctrl-C ends them now", "1 node left"]


def test_a_second_signal_ends_the_wait():
    hurried = threading.Event()
    assert not until_drained(lambda: [notice("a", 2)], drain_s=600, hurried=hurried, tell=lambda _: hurried.set()), (
        "nodes are left"
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
