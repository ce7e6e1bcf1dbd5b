"""What a client has to know of a server: its address, its models with their real context, whether it wants a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.registry import backend_of
from server.cli.client import Client, client_for, server_url
from server.cli.console import CliError, ExitCode
from server.cli.finding import nearest
from server.memory.files import look
from server.settings.catalog import Catalog
from server.settings.discovery import discover, with_discovered
from server.settings.named_models import CatalogError
from server.settings.values import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.settings.catalog import CatalogEntry
    from server.settings.config import Settings

ASSUMED_CONTEXT: Final = 8192
"""Of a model whose context is not known."""


@dataclass(frozen=True)
class Model:
    """One model as clients see it."""

    name: str
    context: int = ASSUMED_CONTEXT
    """Tokens that one request may use."""
    capabilities: tuple[str, ...] = ("completion", "chat", "tools")

    def can(self, *capabilities: str) -> bool:
        """Whether it has all of them."""
        return set(capabilities) <= set(self.capabilities)

    @property
    def answer(self) -> int:
        """Tokens of an answer that leave the prompt its room."""
        return max(256, min(8192, self.context // 4))


@dataclass(frozen=True)
class Connection:
    """What every recipe is made of."""

    base: str
    """The server's address without a path."""
    models: tuple[Model, ...]
    """Every model that can be served."""
    main: Model
    """The one that a client uses that can name only one."""
    keyed: bool = False
    """Requests need a key."""
    notes: tuple[str, ...] = ()

    @property
    def v1(self) -> str:
        """What clients call the base URL."""
        return f"{self.base}/v1"

    @property
    def chats(self) -> tuple[Model, ...]:
        """The models that hold conversations, the main one first."""
        others = [model for model in self.models if model.can("chat") and model != self.main]
        return (self.main, *others)


def connection(url: str | None, settings: Settings, *, model: str | None) -> Connection:
    """The running server's facts; where none answers, those of the configuration. Raises CliError."""
    client = client_for(url, settings)
    try:
        answer = client.response("/v1/models")
    except CliError as problem:
        if url is not None:
            raise
        found, notes = _configured(settings)
        keyed = bool(settings.every_key)
        told = f"{problem.message.partition(' hint:')[0]} What follows is what the configuration says."
        return _connection(server_url(None, settings), found, model, keyed=keyed, notes=[told, *notes])
    if answer.status_code == 401 and client.key is None:
        raise CliError(
            f"{client.base} wants a key to tell its models. hint: set ONECARD_API_KEY to one of its keys",
            ExitCode.USAGE,
        )
    found, notes = _served(client.answered(answer))
    keyed = client.key is not None and Client(client.base, key=None).response("/v1/models").status_code == 401
    return _connection(client.base, found, model, keyed=keyed, notes=notes)


def _served(document: Any) -> tuple[list[tuple[Model, tuple[str, ...]]], list[str]]:
    """Models with their aliases, and what is left out."""
    found, notes = [], []
    listed = document.get("data") if isinstance(document, dict) else None
    for item in listed if isinstance(listed, list) else []:
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str):
            continue
        if not _is_name(name):
            notes.append(f"a model is left out whose name no client could be told: {name[:60]!a}")
        elif why := item.get("unusable"):
            notes.append(f"{name} is left out: {' '.join(str(why).split())}")
        else:
            context = item.get("context_length")
            size = context if isinstance(context, int) and context > 0 else ASSUMED_CONTEXT
            capabilities = tuple(item.get("capabilities") or Model(name).capabilities)
            found.append((Model(name, size, capabilities), tuple(item.get("aliases") or ())))
    return found, notes


def _is_name(name: str) -> bool:
    try:
        return check_name(name) == name
    except ValueError:
        return False


def _configured(settings: Settings) -> tuple[list[tuple[Model, tuple[str, ...]]], list[str]]:
    try:
        entries = Catalog(with_discovered(settings, discover(settings.server.models_dirs))).entries
    except CatalogError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    found, notes = [], []
    for entry in entries:
        try:
            found.append((_of_files(entry), tuple(entry.aliases)))
        except HeaderError as problem:
            notes.append(f"{entry.name} is left out: {' '.join(str(problem).split())}")
    return found, notes


def _of_files(entry: CatalogEntry) -> Model:
    """Raises HeaderError."""
    header = look(entry).header
    configured = None if entry.config.context == "auto" else entry.config.context
    context = backend_of(header).longest_context(header, configured) or ASSUMED_CONTEXT
    if configured is None:  # how far it may grow is for the server to tell, which knows its budget
        context = min(context, ASSUMED_CONTEXT)
    return Model(entry.name, context, tuple(header.capabilities))


def _connection(
    base: str,
    found: list[tuple[Model, tuple[str, ...]]],
    wanted: str | None,
    *,
    keyed: bool,
    notes: Iterable[str],
) -> Connection:
    models = tuple(model for model, _ in found)
    return Connection(base, models, _main(found, wanted), keyed=keyed, notes=tuple(notes))


def _main(found: list[tuple[Model, tuple[str, ...]]], wanted: str | None) -> Model:
    """The named model, by an alias as the client shall call it; else the first that chats. Raises CliError."""
    if wanted is not None:
        for model, aliases in found:
            if wanted == model.name or wanted in aliases:
                return Model(wanted, model.context, model.capabilities)
        names = [name for model, aliases in found for name in (model.name, *aliases)]
        hint = nearest(wanted, names) or f"it has {', '.join(names)}"
        raise CliError(f"there is no model '{wanted}'. hint: {hint}", ExitCode.USAGE)
    chats = [model for model, _ in found if model.can("chat")]
    if not chats:
        raise CliError("no model here holds a conversation. hint: `onecard list` shows the models", ExitCode.USAGE)
    return chats[0]
