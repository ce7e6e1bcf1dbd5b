"""`onecard cluster up` counts the cards before it waits for nodes."""

from __future__ import annotations

import pytest

from server.cli.clusters import Wish, _gpus_per_node
from server.cli.console import CliError


def wish(nodes: int, *, gpus: float | None = None, address: str | None = None) -> Wish:
    return Wish(nodes, nodes, 600.0, None, None, address, 1.0, gpus)


def test_nodes_without_a_card_of_their_own_are_refused_at_once() -> None:
    with pytest.raises(CliError, match=r"2 nodes need 2 cards, and this machine has 1. hint: --gpus 0.5"):
        _gpus_per_node(1.0, wish(2))
    with pytest.raises(CliError, match=r"--gpus 0.5"):
        _gpus_per_node(2.0, wish(3))
    assert _gpus_per_node(2.0, wish(3, gpus=0.5)) == 0.5
    assert _gpus_per_node(0.0, wish(2)) == 0
    assert _gpus_per_node(2.0, wish(2)) == 1
    assert _gpus_per_node(1.0, wish(4, address="10.0.0.5:6379")) == 1
