"""Images behind addresses: bounded in bytes, gone after their time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from backends.diffusion import route
from server.errors import ApiError
from server.stored_images import MAX_BYTES, TTL_S, StoredImages


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


class Clock:
    """What the route asks for the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_addresses_of_answers_turn_over_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given images behind addresses as a server keeps them, when 64 MiB more are drawn or an hour is over, then their
    addresses are told to be gone, and those of the newest are there."""
    clock, app = Clock(), SimpleNamespace(images=StoredImages())
    monkeypatch.setattr(route, "time", clock)
    asked = route.ImageRequest.model_validate({"prompt": "a", "response_format": "url"})
    services: Any = app

    def request(name: str = "") -> Request:
        scope = {"type": "http", "scheme": "http", "server": ("here", 80), "path": "/", "query_string": b""}
        return Request({**scope, "headers": [], "path_params": {"id": name}})

    def kept(image: bytes) -> str:
        (data,) = route._data(request(), services, asked, [(1, image)])
        assert data.url is not None
        return data.url.removeprefix(f"http://here{route.FILES}")

    def fetched(name: str) -> bytes:
        return bytes(asyncio.run(route.stored_image(request(name), services)).body)

    def is_gone(name: str) -> bool:
        with pytest.raises(ApiError) as told:
            fetched(name)
        return (told.value.status, told.value.code) == (404, "image_not_found")

    mib = 2**20
    names = [kept(bytes([i]) * mib) for i in range(MAX_BYTES // mib)]
    assert fetched(names[0]) == bytes([0]) * mib
    newest = kept(b"n")
    assert is_gone(names[0])
    assert fetched(names[1]) == bytes([1]) * mib
    clock.now = TTL_S - 1
    assert fetched(newest) == b"n"
    clock.now = TTL_S
    assert is_gone(newest)
    assert app.images.n_bytes == 0
