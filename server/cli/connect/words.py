"""What several clients are told alike: keys, a context that is too small, addresses from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from server.settings.listener import is_loopback

if TYPE_CHECKING:
    from server.cli.connect.facts import Connection, Model

KEY: Final = "ONECARD_API_KEY"
"""The environment variable in which clients find a server's key."""
AGENTS_NEED: Final = 32768
"""Tokens of context, for a prompt of some 10,000 and work."""


def named(field: str, name: str, *, begins: bool = False) -> Callable[[Any], bool]:
    """What tells our own entries of a list from others: a field that is this name, or begins with it."""

    def ours(entry: Any) -> bool:
        said = str(entry.get(field, "")) if isinstance(entry, Mapping) else ""
        return said.startswith(name) if begins else said == name

    return ours


def key_words(to: Connection) -> str:
    """What a person enters as the key."""
    return "one of the server's keys" if to.keyed else "none (any word does)"


def key_notes(to: Connection) -> list[str]:
    """Where a client looks for the key that the server wants."""
    return (
        [f"the server wants a key, and the client reads it from the environment: export {KEY}=..."] if to.keyed else []
    )


def small(model: Model, least: int, why: str) -> list[str]:
    """What to say of a context that is too small for an agent."""
    if model.context >= least:
        return []
    return [
        f"{model.name} has a context of {model.context} tokens, and {least} is the least that does: {why}. "
        f"hint: context = {max(65536, least)} in its table, if `onecard fit` says that it fits"
    ]


def from_outside(to: Connection) -> tuple[str, ...]:
    """For what mostly runs on another machine or in a container."""
    if not is_loopback(urlsplit(to.base).hostname or ""):
        return ()
    return (
        "this address is of this machine only. A container or another machine gets this machine's name in its place, "
        "and the server has to listen there: `onecard serve --host 0.0.0.0 --api-key-file keys`; "
        "behind a proxy list the proxy's name too: --allowed-host NAME",
    )
