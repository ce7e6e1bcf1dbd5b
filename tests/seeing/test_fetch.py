"""Images behind addresses: only with the operator's word, from public addresses alone, once, and within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from server.errors import ApiError
from server.routes import media_fetch
from server.routes.media_fetch import fetch_media, is_public

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


class Site(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Site.asked.append(self.path)
        kind = "text/html" if self.path == "/page" else "image/png"
        body = bytes(media_fetch.MOST_BYTES + 1) if self.path == "/large" else PNG
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        if self.path == "/slow":
            self.server.shut.wait(30)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # the reader has had enough
            self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Nothing is written."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.shut = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shut.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def body(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}


def fetched(data: dict[str, Any], *, anywhere: bool = True) -> dict[str, Any]:
    asyncio.run(fetch_media(data, allowed=(lambda _: True) if anywhere else is_public))
    return data


def test_an_image_takes_the_place_of_its_address(site: str) -> None:
    Site.asked.clear()
    assert fetched(body(f"{site}/a.png?b=c"))["messages"][0]["content"][1]["image_url"]["url"].startswith(
        "data:image/png;base64,iVBOR"
    )
    assert Site.asked == ["/a.png?b=c"]
    response = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": f"{site}/a"}]}]}
    assert fetched(response)["input"][0]["content"][0]["image_url"].startswith("data:image/png")
    block: dict[str, Any] = {"type": "image", "source": {"type": "url", "url": f"{site}/a"}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    fetched({"messages": [{"role": "user", "content": [result]}]})
    assert block["source"]["type"] == "base64"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/away", "status 302, and no redirect is followed"),
        ("/page", "is text/html, and no image"),
        ("/large", "has more than 10485760 bytes"),
        ("/slow", "did not answer within 0.2 s"),
    ],
)
def test_what_is_no_image_within_the_bounds_is_refused_by_its_place(
    site: str, path: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "/slow":
        monkeypatch.setattr(media_fetch, "WITHIN_S", 0.2)
    with pytest.raises(ApiError, match=told) as caught:
        fetched(body(site + path))
    assert caught.value.param == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:10.0.0.1]"]
)
def test_addresses_that_are_not_public_are_not_asked(host: str) -> None:
    with pytest.raises(ApiError, match=r"not public|cannot be fetched"):
        fetched(body(f"http://{host}:9/a"), anywhere=False)


def test_public_is_what_the_world_can_reach() -> None:
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "2002:7f00:1::")
    private = ("10.1.2.3", "192.168.0.1", "169.254.1.1", "100.64.0.1", "fe80::1", "fc00::1", "224.0.0.1", *loopback)
    assert [address for address in private if is_public(address)] == []
    assert all(map(is_public, ("1.1.1.1", "2606:4700:4700::1111")))


def test_images_of_one_request_are_bounded(site: str) -> None:
    many = {"messages": [{"role": "user", "content": body(site)["messages"][0]["content"][1:] * 9}]}
    with pytest.raises(ApiError, match="9 images are to be fetched, and 8 can be"):
        fetched(many)
