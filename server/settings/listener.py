"""Who can reach the server by its address and names, and whether that needs a key. Pure."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings.config import Settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host.lower() in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def open_listener(settings: Settings) -> str | None:
    """Why anyone on the network could use the server, as a sentence; None where that is not so."""
    hint = "hint: --api-key-file FILE, or --allow-public if everyone may use it"
    if public_without_key(settings):
        return f"server.host = '{settings.server.host}' is open to the network and there is no key. {hint}"
    if (host := foreign_host_without_key(settings)) is not None:
        why = "a web page could call the server by that name"
        return f"server.allowed_hosts names {host}, and there is no key: {why}. {hint}"
    return None


def public_without_key(settings: Settings) -> bool:
    """Whether the listener would be open to the network with no key and without the operator's word."""
    server = settings.server
    return not (is_loopback(server.host) or settings.every_key or server.allow_public)


def foreign_host_without_key(settings: Settings) -> str | None:
    """A name of `allowed_hosts` that a web page could make its own while there is no key; None where there is none."""
    server = settings.server
    if settings.every_key or server.allow_public:
        return None
    return next((host for host in server.allowed_hosts if not is_local_name(host.removeprefix("*."))), None)


def is_local_name(host: str) -> bool:
    """A loopback address or a name that always means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
