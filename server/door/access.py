"""Who may speak to the server: pure checks of Host, Origin, credentials and request ids over raw header bytes.

`server.door.gate` applies them; nothing here knows ASGI.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from server.accounts.account import ADMINS, ANONYMOUS, PLAIN
from server.settings.listener import is_local_name, is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_HOST = re.compile(rb"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{0,5}))?")
"""RFC 3986 lets the port be empty: `localhost:` is `localhost`."""
_ORIGIN = re.compile(rb"https?://(?P<host>[^/?#@\\]+)")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Every value of one header, in order; `name` in lower case."""
    return [value for key, value in headers if key == name]


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own id when it is one short plain word, else a new one."""
    given = header_values(headers, b"x-request-id")
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return f"req_{secrets.token_hex(16)}"


def _split_host(value: bytes) -> str | None:
    """The host of `host[:port]`, brackets removed, lower case; None where it is malformed."""
    match = _HOST.fullmatch(value)
    if match is None or int(match["port"] or 0) > 65535:
        return None
    return match["name"].decode("ascii").lower().strip("[]").removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class HostRule:
    """Which Host headers are right.

    On a loopback listener these are the names of this machine and the `allowed` ones, so that a web page whose name
    points at 127.0.0.1 gets nothing. A public listener takes every name, and where some are `allowed` only these, the
    names of this machine and addresses, which no page can point elsewhere.
    """

    bound_to: str
    allowed: tuple[str, ...] = ()

    def refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Status and sentence for a wrong Host; None when it is right."""
        values = header_values(headers, b"host")
        if len(values) != 1:
            return 400, "A request needs exactly one Host header."
        host = _split_host(values[0])
        if not host:
            return 400, "The Host header is malformed."
        if not self._answers_to(host):
            return (
                403,
                "This server answers only to names of this machine, such as localhost or 127.0.0.1, and to its "
                f"allowed_hosts. hint: start it with --allowed-host {host}, or list that in [server], and set a key",
            )
        return None

    def _answers_to(self, host: str) -> bool:
        if is_local_name(host) or host == self.bound_to.lower() or any(_matches(host, name) for name in self.allowed):
            return True
        return not is_loopback(self.bound_to) and (not self.allowed or _is_address(host))


def _matches(host: str, pattern: str) -> bool:
    """`*.home.lan` means every name below home.lan, and not home.lan."""
    return host.endswith(pattern[1:]) and len(host) >= len(pattern) if pattern.startswith("*.") else host == pattern


@dataclass(frozen=True)
class OriginRule:
    """Which web pages may call: `localhost` means every port of this machine's loopback names, `*` every page."""

    allowed: tuple[str, ...]

    def allows(self, origin: bytes) -> bool:
        """Whether a page of this origin may read answers."""
        match = _ORIGIN.fullmatch(origin)
        if "*" in self.allowed or (match is not None and origin.decode("latin-1") in self.allowed):
            return True
        if match is None or "localhost" not in self.allowed:
            return False
        host = _split_host(match["host"])
        return host is not None and is_local_name(host)


class KeyRing:
    """The API keys, kept as digests so that comparing takes the same time for every guess."""

    def __init__(
        self,
        keys: Iterable[str],
        admins: Iterable[str] = (),
        *,
        named: Mapping[str, str] = MappingProxyType({}),
        secret: bytes | None = None,
    ) -> None:
        """`named`: names by their keys, which are among `keys` or `admins` too."""
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._admins = _digests(admins)
        self._digests = _digests(keys) + self._admins
        self._names = dict(zip(named.values(), _digests(named), strict=True))

    def with_others(self, keys: Iterable[str], admins: Iterable[str], named: Mapping[str, str]) -> KeyRing:
        """Other keys, by which clients that keep theirs have the same domain."""
        return KeyRing(keys, admins, named=named, secret=self._secret)

    @property
    def required(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._digests)

    def refusal(self, headers: Sequence[tuple[bytes, bytes]], *, by_dialog: bool = False) -> str | None:
        """The sentence for a missing or wrong key; None when every credential presented is right.

        `by_dialog`: a browser's own may be what asks for the key, as the password beside any name.
        """
        if not self._digests:
            return None
        presented = _credentials(headers, by_dialog=by_dialog)
        if presented is None:
            return "Send one API key: a single 'Authorization: Bearer KEY', 'x-api-key' or 'api-key' header."
        if not presented:
            return "You didn't provide an API key. Send it as 'Authorization: Bearer KEY', 'x-api-key' or 'api-key'."
        wrong = [key for key in presented if not self._knows(key)]
        return f"Incorrect API key provided: {masked(wrong[0])}." if wrong else None

    def domain(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """A name for the client with these right keys; nothing a key could be told from, and new with every start."""
        if not self._digests:
            return ""
        presented = b"\0".join(sorted(set(_credentials(headers) or [])))
        return hmac.new(self._secret, presented, hashlib.sha256).hexdigest()[:16]

    def is_admin(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether these right keys may move models; without any key every client may."""
        return not self._digests or any(_among(key, self._admins) for key in _credentials(headers) or [])

    def name(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Whose right keys these are; those without a name go by `PLAIN` or `ADMINS`, no keys by `ANONYMOUS`."""
        presented = _credentials(headers, by_dialog=True) or []
        if not self._digests or not presented:
            return ANONYMOUS
        owners = [name for name, digest in self._names.items() for key in presented if _among(key, (digest,))]
        return owners[0] if owners else ADMINS if self.is_admin(headers) else PLAIN

    def _knows(self, key: bytes) -> bool:
        return _among(key, self._digests)


def _digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys)


def _among(key: bytes, digests: Iterable[bytes]) -> bool:
    """All are compared, so that the time tells nothing of which one it was."""
    digest = hashlib.sha256(key).digest()
    return sum(hmac.compare_digest(digest, known) for known in digests) > 0


def _credentials(headers: Sequence[tuple[bytes, bytes]], *, by_dialog: bool = False) -> list[bytes] | None:
    """The keys of a request; None where a header is repeated or no bearer token.

    A browser sends what its dialog was told with every request, also with one that another site makes it send: that is
    a key where nothing but the description is read, and nowhere else.
    """
    found = []
    for name in (b"authorization", b"x-api-key", b"api-key"):
        values = header_values(headers, name)
        if len(values) > 1:
            return None
        if values and name == b"authorization":
            scheme, _, key = values[0].partition(b" ")
            if by_dialog and scheme.lower() == b"basic":
                key = _password(key)
            elif scheme.lower() != b"bearer":
                return None
            found.append(key.strip())
        elif values:
            found.append(values[0])
    return [key for key in found if key] if any(found) else []


def _password(pair: bytes) -> bytes:
    try:
        return base64.b64decode(pair.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def masked(key: bytes) -> str:
    """A key for an error message: its ends where it is long, nothing of it otherwise."""
    if len(key) < 16 or not key.isascii():
        return "****"
    text = "".join(char if char.isprintable() else "?" for char in key.decode("ascii"))
    return f"{text[:4]}****{text[-4:]}"
