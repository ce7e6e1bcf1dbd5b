"""What is kept for later requests never outgrows its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.history import History, Record


def record(name: str, n_bytes: int = 10, domain: str = "") -> Record:
    return Record(name, domain, b"x" * n_bytes, b"", b"", (f"item-{name}",))


def test_a_record_is_found_by_its_id_and_by_its_items():
    history = History(max_count=2, max_bytes=100, ttl_s=60)
    assert history.put(record("a"), 0)

    assert history.get("a", "", 1) == history.holder("item-a", "", 1) == record("a")
    assert history.get("a", "other", 1) is None
    assert history.holder("item-a", "other", 1) is None
    assert history.holder("item-b", "", 1) is None


def test_the_least_recently_used_goes_first():
    history = History(max_count=2, max_bytes=100, ttl_s=60)
    for name in "ab":
        history.put(record(name), 0)
    history.get("a", "", 1)
    history.put(record("c"), 2)

    assert [name for name in "abc" if history.get(name, "", 3)] == ["a", "c"]
    assert history.holder("item-b", "", 3) is None


def test_what_is_larger_than_everything_is_not_kept():
    history = History(max_count=9, max_bytes=25, ttl_s=60)
    history.put(record("a"), 0)

    assert not history.put(record("b", 26), 0)
    assert history.get("a", "", 0) is not None
    history.put(record("c", 20), 0)
    assert history.get("a", "", 0) is None
    assert history.n_bytes == 20


def test_what_is_not_used_for_a_while_expires():
    history = History(max_count=9, max_bytes=100, ttl_s=60)
    history.put(record("a"), 0)
    history.put(record("b"), 0)
    history.get("a", "", 59)

    assert history.get("b", "", 60) is None
    assert history.get("a", "", 118) is not None
    assert history.get("a", "", 178) is None
    assert history.n_bytes == 0


def test_nothing_is_kept_where_nothing_may_be():
    assert not History(max_count=0, max_bytes=100, ttl_s=60).put(record("a"), 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "get", "delete"]), st.integers(0, 9), st.integers(0, 60), st.integers(0, 30)),
        max_size=60,
    )
)
def test_no_sequence_of_uses_outgrows_the_bounds(uses):
    history, now = History(max_count=4, max_bytes=100, ttl_s=50), 0
    for what, number, n_bytes, later in uses:
        now += later
        if what == "put":
            history.put(record(str(number), n_bytes), now)
        elif what == "get":
            history.get(str(number), "", now)
        else:
            history.delete(str(number), "", now)
        assert len(history) <= 4
        assert history.n_bytes <= 100
        kept = [found for name in range(10) if (found := history.get(str(name), "", now)) is not None]
        assert sum(found.n_bytes for found in kept) == history.n_bytes
        assert all(history.holder(found.item_ids[0], "", now) == found for found in kept)
