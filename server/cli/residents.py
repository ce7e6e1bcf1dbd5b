"""`onecard load` and `onecard unload`: an operator's word to a running server, and its answer as a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from server.cli.configuration import loaded_or_exit
from server.cli.console import say, write, write_json
from server.cli.finding import ask_first
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from server.cli.client import Client


def load(model: str, *, url: str | None, config: Path | None, as_json: bool) -> None:
    """Load a model and wait for it; exit code 3 when it does not fit, 4 when no server answers."""
    first = ask_first(model, url=url, settings=loaded_or_exit(config).settings)
    client, model = first.client, first.name or model
    if not as_json:
        say(f"loading {model} ...")
    _show(client, _told(client, model, "load"), as_json=as_json)


def unload(model: str, *, url: str | None, config: Path | None, as_json: bool) -> None:
    """Let a model finish what it runs and go; it may be named by its file, too."""
    first = ask_first(model, url=url, settings=loaded_or_exit(config).settings)
    _show(first.client, _told(first.client, first.name or model, "unload"), as_json=as_json)


def _told(client: Client, model: str, verb: str) -> str:
    """Do it; the model's own name, where an alias was given."""
    name: str = client.post(f"/v1/models/{quote(model, safe='/:')}/{verb}", {})["id"]
    return name


def _show(client: Client, name: str, *, as_json: bool) -> None:
    line = next(m for m in client.get("/v1/status")["models"] if m["name"] == name)
    if as_json:
        write_json(line)
    else:
        write(sentence(line))


def sentence(model: dict[str, Any]) -> str:
    """`chat is ready: 5.9 GiB, context 8192, 2 requests at once`."""
    if model["state"] != "ready":
        return f"{model['name']} is {model['state']}"
    held = format_size(model.get("measured_bytes") or model.get("predicted_bytes") or 0)
    return f"{model['name']} is ready: {held}, context {model['context']}, {model['parallel']} requests at once"
