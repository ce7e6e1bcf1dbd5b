"""A radix tree over sequences of keys (`keys`): who holds the longest prefix of a prompt? Pure; it knows no states.

Each domain has a tree of its own, so that nothing of one is ever found from another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.prefix.keys import Keys

H = TypeVar("H")


class Match(NamedTuple, Generic[H]):
    """A holder that begins like the prompt, and for how many tokens."""

    holder: H
    n_tokens: int


@dataclass(slots=True, eq=False)
class _Node(Generic[H]):
    label: Keys
    """What leads here from the parent."""
    parent: _Node[H] | None = None
    children: dict[int, _Node[H]] = field(default_factory=dict)
    """By their labels' first keys."""
    holders: dict[H, None] = field(default_factory=dict)
    """Those whose sequences end here, oldest first."""


def common(a: Keys, b: Keys) -> int:
    """How many keys two sequences begin with in common."""
    n = min(a.size, b.size)
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


class PrefixIndex(Generic[H]):
    """See the module's text. A holder is anything that can be a key."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node[H]] = {}
        self._ends: dict[H, tuple[str, _Node[H]]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, holder: H) -> bool:
        return holder in self._ends

    def add(self, holder: H, keys: Keys, *, domain: str = "") -> None:
        """Let a holder be found by what it holds; one that is there already is moved."""
        self.remove(holder)
        node = self._roots.setdefault(domain, _Node(np.empty(0, np.int64)))
        rest = keys
        while rest.size:
            child = node.children.get(int(rest[0]))
            if child is None:
                child = _Node(rest.copy(), node)
                node.children[int(rest[0])] = child
                node = child
                break
            n = common(rest, child.label)
            node = child if n == child.label.size else _split(child, n)
            rest = rest[n:]
        node.holders[holder] = None
        self._ends[holder] = (domain, node)

    def remove(self, holder: H) -> None:
        """Forget a holder; nothing for an unknown one."""
        found = self._ends.pop(holder, None)
        if found is None:
            return
        domain, node = found
        del node.holders[holder]
        while node.parent is not None and not node.holders and len(node.children) <= 1:
            parent = node.parent
            if node.children:
                _join(node)
                return
            del parent.children[int(node.label[0])]
            node = parent
        if node.parent is None and not node.children and not node.holders:
            del self._roots[domain]

    def matches(self, keys: Keys, *, domain: str = "", most_each: int = 8) -> Iterator[Match[H]]:
        """Holders that share a prefix with `keys`, longest first; of equal ones at most `most_each`, newest first.

        Behind those of the longest prefix come only holders that end on the way to it: wholly contained in `keys`.
        """
        path = self._walk(keys, domain)
        if not path:
            return
        (node, n_tokens), *shorter = reversed(path)
        if n_tokens:
            for holder, _ in zip(_below(node), range(most_each), strict=False):
                yield Match(holder, n_tokens)
        for node, n_tokens in shorter:
            if n_tokens:
                for holder, _ in zip(reversed(node.holders), range(most_each), strict=False):
                    yield Match(holder, n_tokens)

    def contained(self, keys: Keys, *, domain: str = "") -> list[H]:
        """Holders whose whole sequences `keys` begins with, those that are equal to it among them."""
        on_path = [(node, n) for node, n in self._walk(keys, domain) if n]
        depth, found = 0, []
        for node, n_tokens in on_path:
            depth += node.label.size
            if depth == n_tokens:
                found += list(node.holders)
        return found

    def _walk(self, keys: Keys, domain: str) -> list[tuple[_Node[H], int]]:
        """The nodes on the way along `keys` with the cells matched at each; the last may match in part."""
        node = self._roots.get(domain)
        if node is None:
            return []
        path, n_tokens = [(node, 0)], 0
        while n_tokens < keys.size and (child := node.children.get(int(keys[n_tokens]))) is not None:
            n = common(keys[n_tokens:], child.label)
            n_tokens += n
            path.append((child, n_tokens))
            if n < child.label.size:
                break
            node = child
        return path


def _split(node: _Node[H], n: int) -> _Node[H]:
    """Cut a node's label after `n` keys; the new node before it."""
    assert node.parent is not None
    head = _Node(node.label[:n].copy(), node.parent)
    node.parent.children[int(head.label[0])] = head
    node.label = node.label[n:].copy()
    node.parent = head
    head.children[int(node.label[0])] = node
    return head


def _join(node: _Node[H]) -> None:
    """Let a node at which no entry ends and that has one child become one with it."""
    assert node.parent is not None
    (child,) = node.children.values()
    child.label = np.concatenate([node.label, child.label])
    child.parent = node.parent
    node.parent.children[int(child.label[0])] = child


def _below(node: _Node[H]) -> Iterator[H]:
    """Every holder at a node or under it, nearest first within a branch."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield from reversed(node.holders)
        pending.extend(node.children.values())
