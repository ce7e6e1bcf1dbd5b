"""The radix tree against the plainest way to say the same: compare with all."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.prefix.index import PrefixIndex, common

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 7), TOKENS, st.sampled_from(["", "other"])),
    max_size=40,
)


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int64)


def shared(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


@given(changes=CHANGES, prompt=TOKENS, domain=st.sampled_from(["", "other"]))
def test_the_longest_prefix_is_found_in_its_domain_whatever_came_and_went(changes, prompt, domain) -> None:
    index: PrefixIndex[int] = PrefixIndex()
    plain: dict[int, tuple[str, list[int]]] = {}
    for what, holder, tokens, where in changes:
        if what == "add":
            index.add(holder, array(tokens), domain=where)
            plain[holder] = (where, tokens)
        else:
            index.remove(holder)
            plain.pop(holder, None)

    found = list(index.matches(array(prompt), domain=domain, most_each=99))
    whole = index.contained(array(prompt), domain=domain)

    mine = {holder: tokens for holder, (where, tokens) in plain.items() if where == domain}
    best = max((shared(tokens, prompt) for tokens in mine.values()), default=0)
    assert all(match.n_tokens == shared(mine[match.holder], prompt) for match in found)
    assert {m.holder for m in found if m.n_tokens == best} == {
        h for h, tokens in mine.items() if best and shared(tokens, prompt) == best
    }
    assert [m.n_tokens for m in found] == sorted((m.n_tokens for m in found), reverse=True)
    contained = {h for h, tokens in mine.items() if tokens == prompt[: len(tokens)]}
    assert set(whole) == contained
    assert contained <= {match.holder for match in found}
    assert len(index) == len(plain)


def test_an_index_that_all_have_left_holds_nothing() -> None:
    index: PrefixIndex[str] = PrefixIndex()
    for name, tokens in (("a", [1, 2, 3]), ("b", [1, 2]), ("c", [1, 2, 3, 4]), ("d", [9])):
        index.add(name, array(tokens))

    for name in "bdac":
        index.remove(name)

    assert not index._roots
    assert list(index.matches(array([1, 2, 3]))) == []


def test_common_counts_equal_tokens_at_the_start() -> None:
    assert common(array([1, 2, 3]), array([1, 2, 4, 5])) == 2
    assert common(array([1, 2]), array([1, 2, 4])) == 2
    assert common(array([]), array([1])) == 0
