"""Which server a command talks to that needs a model: a running one, or one of our own for the while."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from server.cli.client import Client, client_for, problem_of
from server.cli.console import CliError, ExitCode
from server.cli.flags import name_for
from server.cli.spawn import own_server
from server.settings.builtin import BUILT_IN
from server.settings.references import parse_hub_reference

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from server.settings.config import Settings


@contextmanager
def server_for(
    model: str,
    *,
    url: str | None,
    config: Path | None,
    settings: Settings,
    overrides: dict[str, int] | None = None,
) -> Generator[tuple[Client, str], None, None]:
    """A client and the model's name there: at `--url`, else at the configured address where that serves the model,
    else on a server of our own, whose model may have `overrides` of its table. Raises CliError.
    """
    client = client_for(url, settings)
    if url is not None:
        _require(client, model)
        yield client, model
        return
    if _serves(client, model):
        yield client, model
        return
    name, flags = _own_model(model, settings)
    with own_server(flags, config, tables={name: overrides} if overrides else {}) as own:
        yield Client(own, key=next(iter(settings.server.keys), None)), name


def refuse_without_text(client: Client, name: str) -> None:
    """Say what a model is for that writes no text. Raises CliError."""
    can = client.get(f"/v1/models/{quote(name)}")["capabilities"]
    for capability, kind, route in (
        ("embedding", "an embedding model", "/v1/embeddings"),
        ("rerank", "a reranker", "/v1/rerank"),
    ):
        if capability in can and "completion" not in can:
            hint = f"serve it with `onecard serve` and POST {route}; docs/embeddings.md has an example"
            raise CliError(f"'{name}' is {kind} and writes no text. hint: {hint}", ExitCode.USAGE)


def _serves(client: Client, model: str) -> bool:
    """Whether the server of the configured address is up and has the model."""
    if Path(model).suffix == ".gguf":
        return False
    try:
        return client.response(f"/v1/models/{quote(model)}").status_code == 200
    except CliError:
        return False


def _require(client: Client, model: str) -> None:
    response = client.response(f"/v1/models/{quote(model)}")
    if response.status_code == 200:
        return
    if response.status_code == 404:
        names = [name for item in client.get("/v1/models")["data"] for name in (item["id"], *item.get("aliases", []))]
        raise CliError(f"{client.base} has no model '{model}'. hint: {nearest(model, names) or _it_has(names)}")
    try:
        document = response.json()
    except ValueError:
        document = None
    raise problem_of(document, f"{client.base} answered {response.status_code}")


def _own_model(model: str, settings: Settings) -> tuple[str, list[str]]:
    """Name and `--model` flags for a server of our own. Raises CliError."""
    owners = {alias: name for name, config in settings.models.items() for alias in (name, *config.aliases)}
    if model in owners:
        return owners[model], []
    if model in BUILT_IN or Path(model).expanduser().exists() or parse_hub_reference(model):
        name = name_for(model)
        return name, [f"{name}={model}"]
    known = [*settings.models, *BUILT_IN]
    hint = nearest(model, [*known, *sorted(owners)]) or "give the path of a .gguf"
    raise CliError(f"'{model}' is neither a model ({', '.join(known)}) nor a file. hint: {hint}")


def nearest(model: str, names: Iterable[str]) -> str | None:
    """`did you mean chat?` where a name is like what was written; capitals don't count."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(model.lower(), lower, n=1)
    return f"did you mean {lower[near[0]]}?" if near else None


def _it_has(names: list[str]) -> str:
    return f"it has {', '.join(names)}"
