"""What the door goes by, as the configuration has it now: hosts, origins, keys and the size of bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.door.access import HostRule, KeyRing, OriginRule

if TYPE_CHECKING:
    from server.settings.config import ServerSection


class DoorRules:
    """One per server; a request goes by those that hold when it comes."""

    def __init__(self, server: ServerSection) -> None:
        self.keys = KeyRing(server.api_keys, server.admin_keys)
        self._take(server)

    def change(self, server: ServerSection) -> None:
        """Go by other ones from now on."""
        self.keys = self.keys.with_others(server.api_keys, server.admin_keys)
        self._take(server)

    def _take(self, server: ServerSection) -> None:
        self.hosts = HostRule(server.host, tuple(server.allowed_hosts))
        self.origins = OriginRule(tuple(server.cors))
        self.max_body_bytes = server.max_body_bytes
