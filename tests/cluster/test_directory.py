"""A directory that is lost takes nothing with it: neither nodes nor the word that the cluster ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.cluster import directory
from server.cluster.directory import Directory, Heard
from tests.cluster.test_end import notice


def names(nodes):
    return sorted(node.node for node in nodes)


def test_nodes_that_have_not_told_the_next_directory_yet_are_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given two nodes, when their directory is lost, then both stay known until the next one has heard all."""
    monkeypatch.setattr(directory, "SETTLED_S", 0.0)
    before, heard = Directory(), Heard()
    for name in "ab":
        before.put(notice(name, 0))
    assert names(heard.take(before.told())) == ["a", "b"]

    monkeypatch.setattr(directory, "SETTLED_S", 3600.0)
    after = Directory()
    after.put(notice("b", 7))
    known = heard.take(after.told())

    assert names(known) == ["a", "b"]
    assert {node.node: node.models["chat"].running for node in known} == {"a": 0, "b": 7}
    monkeypatch.setattr(directory, "SETTLED_S", 0.0)
    assert names(heard.take(after.told())) == ["b"]


def test_what_is_known_of_a_node_grows_old_while_no_directory_tells_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("server.cluster.directory.time", SimpleNamespace(monotonic=lambda: clock[0]))
    before, heard = Directory(), Heard()
    before.put(notice("a", 0))
    heard.take(before.told())

    clock[0] += 2.5
    (known,) = heard.take(Directory().told())

    assert known.age_s == 2.5


def test_an_end_stays_told_although_the_next_directory_does_not_know() -> None:
    before, heard = Directory(), Heard()
    before.end()
    heard.take(before.told())
    after = Directory()

    heard.take(after.told())

    assert heard.ends
    assert not after.ends(), "it learns of it from who ends the cluster"
    assert after.end().ends


def test_a_cluster_that_comes_up_is_not_ended_by_the_one_before() -> None:
    """Given a `down` that was killed before it was through, then the next `up` does not end at once."""
    same = Directory()
    same.end()

    same.begin()

    assert not same.told().ends
