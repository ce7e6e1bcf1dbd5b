"""Which server a command talks to that needs a model: a running one, or one of our own for the while."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from backends.kinds import GENERATE
from backends.registry import KINDS
from server.cli.client import Client, client_for
from server.cli.configuration import with_folders
from server.cli.console import CliError, ExitCode, say
from server.cli.flags import name_for
from server.cli.spawn import own_server
from server.cli.tuned import TUNED, tuned_models
from server.memory.files import identity_of
from server.settings.builtin import BUILT_IN, built_in_path
from server.settings.references import LocateError, locate, parse_hub_reference

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from httpx2 import Response

    from server.settings.config import Settings


@dataclass(frozen=True)
class Asked:
    """What the server that was asked first says of a model."""

    client: Client
    name: str | None
    """The model's there; None where it does not serve it."""
    names: tuple[str, ...] = ()
    """All there are, aliases too."""
    why_not: str = ""
    """Why it does not serve the model, as half a sentence."""

    def refuse(self, model: str) -> NoReturn:
        """It was named, and does not serve the model. Raises CliError."""
        if not self.names:
            raise CliError(self.why_not)
        hint = nearest(model, self.names) or f"it has {', '.join(self.names)}"
        raise CliError(f"{self.client.base} has no model '{model}'. hint: {hint}")


@contextmanager
def server_for(
    model: str,
    *,
    url: str | None,
    config: Path | None,
    settings: Settings,
    overrides: dict[str, int] | None = None,
) -> Generator[tuple[Client, str], None, None]:
    """A client and the model's name there: at `--url`, else at the configured address where that serves the model or
    its very file, else on a server of our own, whose model may have `overrides` of its table. Raises CliError.
    """
    asked = ask_first(model, url=url, settings=settings)
    if asked.name is not None:
        yield asked.client, asked.name
        return
    if url is not None:
        asked.refuse(model)
    known = with_folders(settings).settings
    name, flags = _own_model(model, known, asked)
    say(f"{asked.why_not}, so one is started for this command")
    table: dict[str, Any] = dict(overrides or {})
    if table and name in known.models and name not in settings.models:
        table["path"] = known.models[name].path
    with own_server(flags, config, tables={name: table} if table else {}) as own:
        yield Client(own, key=next(iter(settings.every_key), None)), model if is_adapter(model, known) else name


def ask_first(model: str, *, url: str | None, settings: Settings) -> Asked:
    """Whether the server at `--url` or the configured address serves a model of that name, or of that file."""
    client = client_for(url, settings)
    try:
        response = client.response(f"/v1/models/{quote(model, safe=':')}")
    except CliError:
        if url is not None:
            raise
        return Asked(client, None, why_not=f"no server answers at {client.base}")
    if not _is_ours(response):
        return Asked(client, None, why_not=f"what answers at {client.base} is no onecard")
    if response.status_code == 200:
        return Asked(client, model)
    if response.status_code != 404:
        if url is not None:
            client.answered(response)
        return Asked(client, None, why_not=f"the server at {client.base} refuses the key (ONECARD_API_KEY)")
    listed = client.get("/v1/models")["data"]
    names = tuple(name for item in listed for name in (item["id"], *item.get("aliases", [])))
    if (name := _of_file(client, model, settings)) is not None:
        say(f"{client.base} serves that file as {name}")
        return Asked(client, name, names)
    return Asked(client, None, names, f"the server at {client.base} does not serve {model}")


def _is_ours(response: Response) -> bool:
    """Whether a onecard answered; a cluster's nodes do so behind Ray's proxy, which signs with its own name."""
    return response.headers.get("server") == "onecard" or "x-onecard-node" in response.headers


def running_server(url: str | None, settings: Settings) -> Client | None:
    """The server at `--url` or the configured address; None where no onecard answers there. Raises CliError."""
    client = client_for(url, settings)
    try:
        response = client.response("/v1/models")
    except CliError:
        if url is not None:
            raise
        return None
    if url is None and not _is_ours(response):
        return None
    if url is None and response.status_code != 200:
        say(f"note: the server at {client.base} refuses the key (ONECARD_API_KEY), so it is not asked")
        return None
    client.answered(response)
    return client


def _of_file(client: Client, model: str, settings: Settings) -> str | None:
    """The running server's name for a model of ours, by its file; an adapter's base is another model."""
    if is_adapter(model, settings):
        return None
    configured = settings.models.get(owners(settings).get(model, ""))
    try:
        wanted = identity_of(locate(configured.path if configured is not None else model).path)
    except (LocateError, OSError):
        return None
    lines = client.get("/v1/status")["models"]
    return next((line["name"] for line in lines if line.get("file") == wanted), None)


def refuse_without_text(client: Client, name: str) -> None:
    """Say what a model is for that writes no text. Raises CliError."""
    can = client.get(f"/v1/models/{quote(name)}")["capabilities"]
    if GENERATE.capability in can:
        return
    for kind in KINDS.values():
        if kind.capability in can:
            hint = f"serve it with `onecard serve` and {kind.surface}; docs/api.md tells how"
            raise CliError(f"'{name}' {kind.does} and writes no text. hint: {hint}", ExitCode.USAGE)


def owners(settings: Settings) -> dict[str, str]:
    """The model that each configured name or alias means."""
    return {alias: name for name, config in settings.models.items() for alias in config.called(name)}


def is_adapter(model: str, settings: Settings) -> bool:
    """Whether a configured name means an adapter, and not the model alone."""
    owner = owners(settings).get(model)
    return owner is not None and model not in (owner, *settings.models[owner].aliases)


def chat_models(client: Client) -> list[dict[str, Any]]:
    """The server's models that write text, as far as it knows. Raises CliError."""
    can = [(item, item.get("capabilities") or ["completion"]) for item in client.get("/v1/models")["data"]]
    return [item for item, what in can if "completion" in what]


def text_models(client: Client) -> list[str]:
    """Their names and aliases. Raises CliError."""
    return [name for item in chat_models(client) for name in (item["id"], *item.get("aliases", []))]


def models_at(url: str | None, settings: Settings) -> list[str]:
    """The models that write text at `--url`, else at the configured address, else those of the configuration."""
    client = client_for(url, settings)
    try:
        return [item["id"] for item in chat_models(client)]
    except CliError:
        if url is not None:
            raise
    return [*settings.models] or [
        name for name, model in BUILT_IN.items() if model.writes and built_in_path(name) is not None
    ]


def is_known_here(model: str, settings: Settings) -> bool:
    """Whether a server of our own could serve it, as far as its name tells."""
    if model in owners(settings) or model in BUILT_IN or _is_tuned(model, settings):
        return True
    return Path(model).expanduser().exists() or parse_hub_reference(model) is not None


def _is_tuned(model: str, settings: Settings) -> bool:
    """Whether a fine-tuning job has made it, and its base, where it is one's adapter, is configured here."""
    found = tuned_models().get(model) if model.startswith(TUNED) else None
    return found is not None and (found.model.whole or found.model.base in settings.models)


def _own_model(model: str, settings: Settings, asked: Asked) -> tuple[str, list[str]]:
    """Name and `--model` flags for a server of our own. Raises CliError."""
    known = owners(settings)
    if model in known:
        return known[model], []
    if _is_tuned(model, settings):
        return model, []
    if is_known_here(model, settings):
        name = name_for(model)
        return name, [f"{name}={model}"]
    names = [*dict.fromkeys([*settings.models, *BUILT_IN, *asked.names])]
    hint = nearest(model, [*names, *sorted(known)]) or "give the path of a .gguf or of a model's folder"
    raise CliError(f"'{model}' is neither a model ({', '.join(names)}) nor a file. hint: {hint}", ExitCode.USAGE)


def nearest(model: str, names: Iterable[str]) -> str | None:
    """`did you mean chat?` where a name is like what was written; capitals don't count."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(model.lower(), lower, n=1)
    return f"did you mean {lower[near[0]]}?" if near else None
