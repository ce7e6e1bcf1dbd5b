"""Images behind addresses: bounded in bytes, gone after their time."""

from __future__ import annotations

from server.stored_images import StoredImages


def test_images_leave_when_their_time_is_over() -> None:
    kept = StoredImages(max_bytes=100, ttl_s=60)
    kept.put({"a": b"1" * 10}, "image/png", now=0)
    kept.put({"b": b"2" * 10}, "image/png", now=30)
    found = kept.get("a", now=59)
    assert found is not None
    assert (found.data, found.media_type) == (b"1" * 10, "image/png")
    assert kept.get("a", now=60) is None
    assert kept.get("b", now=60) is not None
    assert kept.n_bytes == 10


def test_the_oldest_leave_for_new_ones() -> None:
    kept = StoredImages(max_bytes=100, ttl_s=60)
    for i in range(30):
        kept.put({str(i): bytes(40)}, "image/png", now=i)
        assert kept.n_bytes <= 100
    assert [name for name in map(str, range(30)) if kept.get(name, now=30)] == ["28", "29"]
    kept.put({"large": bytes(500)}, "image/png", now=31)
    assert kept.get("large", now=31) is not None
    assert kept.get("29", now=31) is None


def test_the_images_of_one_answer_stay_together() -> None:
    """Given an answer that is larger than what is kept, then each of its images is there, until another comes."""
    kept = StoredImages(max_bytes=100, ttl_s=60)
    kept.put({"old": bytes(40)}, "image/png", now=0)
    kept.put({name: bytes(60) for name in "abc"}, "image/png", now=1)
    assert kept.get("old", now=1) is None
    assert all(kept.get(name, now=1) is not None for name in "abc")
    kept.put({"new": bytes(60)}, "image/png", now=2)
    assert [name for name in "abc" if kept.get(name, now=2) is not None] == []
    assert kept.n_bytes == 60
