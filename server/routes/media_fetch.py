"""Images that a request names by an address: fetched once, where the operator allows it, before the request is checked.

An address must lead to the public network: what it resolves to is looked at, and that very address is connected to. No
redirect is followed, no proxy is asked, and every fetch has a bound in bytes and time.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_BYTES: Final = 10 * 2**20
"""Of one image."""
WITHIN_S: Final = 10.0
"""From the name's resolution to the last byte."""
MOST_IMAGES: Final = 8
"""Of one request."""
_PORTS: Final = {"http": 80, "https": 443}
_PART_BYTES: Final = 1 << 16
_SHOWN_CHARS: Final = 80
_MOST_DEPTH: Final = 4
"""Contents within contents: a tool's result in a message."""


class FetchError(Exception):
    """An address that gave no image; a clause that follows it."""


@dataclass(frozen=True)
class _Place:
    """Where a request names an address: the object that holds it, the key in it, and the path to it."""

    holder: dict[str, Any]
    key: str
    path: str


def is_public(address: str) -> bool:
    """Whether an IP address is of the public network, also one of IPv4 within IPv6."""
    ip = ipaddress.ip_address(address)
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return ip.is_global and not ip.is_multicast and (inner is None or (inner.is_global and not inner.is_multicast))


async def fetch_media(data: dict[str, Any], *, allowed: Callable[[str], bool] = is_public) -> None:
    """Put images in the place of their addresses, as data URLs. Raises ApiError 400."""
    places = list(_places(data))
    if len(places) > MOST_IMAGES:
        told = f"{len(places)} images are to be fetched, and {MOST_IMAGES} can be. hint: send them as data URLs"
        raise ApiError(400, told, param=places[MOST_IMAGES].path, code="invalid_value")
    for place in places:
        url = place.holder[place.key]
        try:
            kind, body = await asyncio.to_thread(fetch, url, allowed=allowed)
        except FetchError as error:
            told = f"Invalid '{place.path}': {url[:_SHOWN_CHARS]} {error}. hint: send the image as a data URL"
            raise ApiError(400, told, param=place.path, code="invalid_value") from None
        encoded = base64.b64encode(body).decode("ascii")
        if place.key == "source":
            place.holder["source"] = {"type": "base64", "media_type": kind, "data": encoded}
        else:
            place.holder[place.key] = f"data:{kind};base64,{encoded}"


def _places(data: Any, path: str = "", depth: int = 0) -> Iterator[_Place]:
    """Every address of an image in a body, of all surfaces' parts."""
    if isinstance(data, list):
        for index, one in enumerate(data):
            if isinstance(one, dict):
                yield from _places(one, f"{path}[{index}]", depth)
    if not isinstance(data, dict):
        return
    if data.get("type") in ("image_url", "input_image"):
        value, at = data.get("image_url"), f"{path}.image_url"
        if isinstance(value, dict) and _is_address(value.get("url")):
            yield _Place(value, "url", f"{at}.url")
        elif _is_address(value):
            yield _Place(data, "image_url", at)
    source = data.get("source") if data.get("type") == "image" else None
    if isinstance(source, dict) and source.get("type") == "url" and _is_address(source.get("url")):
        yield _Place(_Unfolded(data, source), "source", f"{path}.source.url")
    for key in ("messages", "input", "content", "output"):
        if key in data and depth < _MOST_DEPTH:
            yield from _places(data[key], f"{path}.{key}" if path else key, depth + 1)


class _Unfolded(dict[str, Any]):
    """A part of Anthropic's whose source is replaced as a whole; its address is read under the same key."""

    def __init__(self, part: dict[str, Any], source: dict[str, Any]) -> None:
        super().__init__(source=source["url"])
        self._part = part

    def __setitem__(self, key: str, value: Any) -> None:
        self._part[key] = value


def _is_address(value: object) -> bool:
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


def fetch(url: str, *, allowed: Callable[[str], bool]) -> tuple[str, bytes]:
    """The media type and the bytes behind an address. Raises FetchError; blocks for `WITHIN_S` at most."""
    until = time.monotonic() + WITHIN_S
    try:
        split = urlsplit(url)
        port = split.port or _PORTS[split.scheme]
    except (ValueError, KeyError):
        raise FetchError("is no address") from None
    if not split.hostname or split.username is not None:
        raise FetchError("is no address that is fetched")
    try:
        connection = _connected(split, port, until, allowed)
        try:
            return _read(connection, split, until)
        finally:
            connection.close()
    except TimeoutError:
        raise FetchError(f"did not answer within {WITHIN_S:g} s") from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise FetchError(f"cannot be fetched: {type(error).__name__}") from None


def _connected(
    split: SplitResult, port: int, until: float, allowed: Callable[[str], bool]
) -> http.client.HTTPConnection:
    """A connection to the very address that was looked at."""
    host = split.hostname or ""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(info[4][0]) for info in found]
    if not all(allowed(address.partition("%")[0]) for address in addresses):
        raise FetchError("leads to an address that is not public")
    raw = socket.create_connection((addresses[0], port), timeout=_left(until))
    connection = http.client.HTTPConnection(host, port)
    if split.scheme == "https":
        raw.settimeout(_left(until))
        raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    connection.sock = raw
    return connection


def _read(connection: http.client.HTTPConnection, split: SplitResult, until: float) -> tuple[str, bytes]:
    target = (split.path or "/") + (f"?{split.query}" if split.query else "")
    wire = connection.sock  # the connection lets go of it when the other side will close
    wire.settimeout(_left(until))
    connection.request("GET", target, headers={"User-Agent": "onecard", "Accept": "image/*"})
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        raise FetchError(f"answered with status {answer.status}, and no redirect is followed")
    kind = answer.headers.get_content_type()
    if not kind.startswith("image/"):
        raise FetchError(f"is {kind}, and no image")
    body = bytearray()
    while True:
        wire.settimeout(_left(until))
        part = answer.read1(_PART_BYTES)
        if not part:
            return kind, bytes(body)
        body += part
        if len(body) > MOST_BYTES:
            raise FetchError(f"has more than {MOST_BYTES} bytes")


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
