"""`onecard show`: what a model is, what it can do, what it takes and where it lies.

A running server that has the model is asked first; the model's files tell the rest where they are files of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import msgspec

from backends.files import model_files
from backends.files.adapters import served
from server.cli.configuration import loaded_or_exit, with_folders
from server.cli.console import CliError, harmless, say, stdout, write_json
from server.cli.finding import ask_first
from server.cli.fit import capacity_for, entries_of, facts_of, plan_words
from server.cli.listing import homely, source_of
from server.memory.capacity import Capacity
from server.memory.files import identity_of
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from server.cli.client import Client
    from server.settings.catalog import CatalogEntry

_LICENCE: Final = re.compile(r"^license:\s*[\"']?([\w.+-]{1,64})", re.MULTILINE)
_CARD_BYTES: Final = 2**20


def show_model(model: str, *, url: str | None, config: Path | None, as_json: bool) -> None:
    """Print what is known of it. Raises CliError."""
    settings = with_folders(loaded_or_exit(config).settings).settings
    asked = ask_first(model, url=url, settings=settings)
    if asked.name is None and url is not None:
        asked.refuse(model)
    if asked.name is None:
        _, (entry,) = entries_of([model], {}, config)
        told = {"name": entry.name, **_of_files(entry), **_plan_here(entry, config)}
    else:
        say(f"as the server at {asked.client.base} has it now")
        told = _of_server(asked.client, asked.name)
        about = _of_same_file(model, config, told.pop("file"))
        told = {**told, **{key: value for key, value in about.items() if key not in told}}
    if as_json:
        write_json(told)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in told.items():
        if value not in (None, "", []):
            table.add_row(key.removesuffix("_bytes").replace("_", " "), Text(harmless(_cell(key, value))))
    stdout().print(table)


def _of_files(entry: CatalogEntry) -> dict[str, Any]:
    """What its files say, and where they are. Raises CliError."""
    header = facts_of(entry).header
    return {
        "backend": entry.backend,
        **header.about,
        "trained_context": header.n_ctx_train or None,
        "gives": header.gives,
        "capabilities": header.capabilities,
        "licence": header.about.get("licence") or _licence(entry.path),
        "size_bytes": entry.size_bytes,
        "path": str(entry.path),
        "from": source_of(entry.path),
        "adapters": [
            f"{one.name}: rank {one.rank}, {one.n_targets} matrices, {format_size(one.n_bytes)}"
            for one in served(header.adapters)
        ],
        "remarks": list(header.remarks),
    }


def _plan_here(entry: CatalogEntry, config: Path | None) -> dict[str, Any]:
    """The plan of a server without other models."""
    try:
        plan, _ = capacity_for(entry.path, config, {})
    except CliError as problem:
        return {"estimate_bytes": None, "fits": None, "plan": problem.message}
    return {"estimate_bytes": plan.total_bytes, "fits": plan.fits, "plan": plan_words(plan.plan)}


def _of_server(client: Client, name: str) -> dict[str, Any]:
    """What a running server tells of its model. Raises CliError."""
    model = client.get(f"/v1/models/{quote(name, safe=':')}")
    line: dict[str, Any] = next((one for one in client.get("/v1/status")["models"] if one["name"] == model["id"]), {})
    told = {
        "name": model["id"],
        "aliases": model["aliases"],
        "server": client.base,
        "state": model["state"],
        "backend": model["backend"],
        "context": model["context_length"],
        "trained_context": (model["meta"] or {}).get("n_ctx_train"),
        "capabilities": model["capabilities"],
        "sampling": [f"{key} {value:g}" for key, value in model["sampling"].items()],
        "system": model["system"],
        "remarks": model["remarks"],
        "file": line.get("file"),
    }
    if model["unusable"] is not None:
        return {**told, "unusable": model["unusable"]}
    plan = msgspec.convert(client.get(f"/v1/capacity?{urlencode({'model': name})}"), Capacity)
    return {
        **told,
        "measured_bytes": line.get("measured_bytes"),
        "estimate_bytes": plan.total_bytes,
        "fits": plan.fits,
        "plan": plan_words(plan.plan),
    }


def _of_same_file(model: str, config: Path | None, file: str | None) -> dict[str, Any]:
    """What the files of our model of that name or path say, where it is the very file that the server has."""
    try:
        _, (entry,) = entries_of([model], {}, config)
        return _of_files(entry) if file is not None and identity_of(entry.path) == file else {}
    except (CliError, OSError):
        return {}


def _cell(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{format_size(value)} ({value} bytes)"
    if key == "path":
        return homely(Path(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _licence(path: Path) -> str | None:
    """As the card beside the files says."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        found = _LICENCE.search(model_files.read_text(card, _CARD_BYTES))
    except model_files.FileError:
        return None
    return found[1] if found else None
