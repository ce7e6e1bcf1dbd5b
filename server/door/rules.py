"""What the door goes by, as the configuration has it now: hosts, origins, keys with their accounts, sizes of bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.accounts.account import ADMINS, ANONYMOUS, PLAIN
from server.door.access import HostRule, KeyRing, OriginRule

if TYPE_CHECKING:
    from server.accounts.account import Account
    from server.accounts.book import Accounts
    from server.settings.config import Settings


class DoorRules:
    """One per server; a request goes by those that hold when it comes."""

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        self._accounts = accounts
        self.keys = KeyRing([])
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Go by these from now on."""
        server, named = settings.server, settings.keys
        by_key = {its.key: name for name, its in named.items() if its.key is not None}
        admins = [key for key, name in by_key.items() if named[name].admin]
        plain = [key for key, name in by_key.items() if not named[name].admin]
        self.keys = self.keys.with_others([*server.api_keys, *plain], [*server.admin_keys, *admins], by_key)
        self._limits = {name: its.limits for name, its in named.items()}
        for name, limits in self._limits.items():
            self._accounts.of(name, limits)
        present = ((PLAIN, server.api_keys), (ADMINS, server.admin_keys), (ANONYMOUS, not self.keys.required))
        self._unnamed = {name for name, there in present if there}
        self.hosts = HostRule(server.host, tuple(server.allowed_hosts))
        self.origins = OriginRule(tuple(server.cors))
        self.max_body_bytes = server.max_body_bytes

    def account_of(self, name: str) -> Account | None:
        """The account of that name, as far as there are still such keys."""
        if name in self._limits:
            return self._accounts.of(name, self._limits[name])
        return self._accounts.of(name) if name in self._unnamed else None

    def account(self, headers: list[tuple[bytes, bytes]]) -> Account:
        """Whose request this is, by its right keys."""
        name = self.keys.name(headers)
        limits = self._limits.get(name)
        return self._accounts.of(name) if limits is None else self._accounts.of(name, limits)
