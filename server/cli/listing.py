"""`onecard list`: the models of a running server, else of the configuration, and those in the Hugging Face cache."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.configuration import loaded_or_exit
from server.cli.console import CliError, ExitCode, harmless, say, stdout, write_json
from server.cli.finding import running_server
from server.memory.files import identity_of
from server.settings.builtin import BUILT_IN, built_in_path
from server.settings.catalog import Catalog
from server.settings.discovery import discover, usual_places
from server.settings.named_models import CatalogError
from server.settings.references import LocateError, first_parts, hub_cache, locate
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from server.cli.client import Client
    from server.settings.catalog import CatalogEntry
    from server.settings.config import Settings

_QUANT = re.compile(r"[-._]((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4))(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class Cached:
    """A model in the cache."""

    reference: str
    """What may stand as a model's path."""
    backend: str
    path: str
    size_bytes: int


@dataclass(frozen=True)
class Listed:
    """A model that is served, or would be. What a server does not tell and no file of ours is, is None."""

    name: str
    aliases: list[str]
    backend: str
    path: str | None
    source: str | None
    size_bytes: int | None
    missing: str | None
    """Why it cannot be served; None where it can."""
    state: str | None = None
    """Of a running server's model."""

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        return {("from" if key == "source" else key): value for key, value in asdict(self).items()}

    def row(self, *, with_state: bool) -> list[str]:
        """As the table has it."""
        size = (
            "missing" if self.missing is not None else "-" if self.size_bytes is None else format_size(self.size_bytes)
        )
        where = "of the server" if self.path is None else homely(Path(self.path))
        state = [self.state or "-"] if with_state else []
        return [", ".join([self.name, *self.aliases]), *state, self.backend, size, where]


def show_models(config: Path | None, *, url: str | None, as_json: bool) -> None:
    """Print the models of a running server, else of the configuration; those of the cache, and of other programs."""
    settings = loaded_or_exit(config).settings
    cached = cached_models()
    elsewhere = discover([*settings.server.models_dirs, *usual_places()])
    server = running_server(url, settings)
    if server is None:
        listed = _configured(settings)
    else:
        say(f"as the server at {server.base} has it now")
        own = [*(Path(model.path) for model in cached), *(model.path for model in elsewhere.models)]
        listed = _served(server, [*(entry.path for entry in _entries(settings)), *own])
    for text in elsewhere.problems:
        say(f"note: {text}")
    if as_json:
        others = [{"name": m.name, "path": str(m.path), "from": m.source} for m in elsewhere.models]
        models = [model.told() for model in listed]
        base = None if server is None else server.base
        write_json({"server": base, "models": models, "cache": [asdict(one) for one in cached], "elsewhere": others})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", *(("STATE",) if server else ()), "BACKEND", "SIZE", "PATH"):
        table.add_column(title, justify="right" if title == "SIZE" else "left", overflow="fold")
    rows = [model.row(with_state=server is not None) for model in listed]
    state = ["-"] if server else []
    rows += [[m.reference, *state, m.backend, format_size(m.size_bytes), "in the cache"] for m in cached]
    for other in elsewhere.models:
        size = format_size(size_of(other.path))
        rows.append([other.name, *state, "-", size, f"{other.source}, by --models-dir"])
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    stdout().print(table)


def _entries(settings: Settings) -> list[CatalogEntry]:
    try:
        return Catalog(settings).entries
    except CatalogError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None


def _configured(settings: Settings) -> list[Listed]:
    """What a server of this configuration would serve. Raises CliError."""
    return [
        Listed(
            entry.name,
            list(entry.aliases),
            entry.backend,
            str(entry.path),
            source_of(entry.path),
            entry.size_bytes,
            entry.missing,
        )
        for entry in _entries(settings)
    ]


def _served(server: Client, own: list[Path]) -> list[Listed]:
    """What the running server serves; where its files lie, of those that are files of ours. Raises CliError."""
    paths: dict[str | None, Path] = {known: path for path in own if (known := _identity(path)) is not None}
    files = {line["name"]: line.get("file") for line in server.get("/v1/status")["models"]}
    listed = []
    for model in server.get("/v1/models")["data"]:
        path = paths.get(files.get(model["id"]))
        listed.append(
            Listed(
                model["id"],
                list(model.get("aliases", [])),
                model["backend"],
                None if path is None else str(path),
                None if path is None else source_of(path),
                None if path is None else size_of(path),
                model.get("unusable"),
                model["state"],
            )
        )
    return listed


def _identity(path: Path) -> str | None:
    try:
        return identity_of(path)
    except OSError:
        return None


def size_of(path: Path) -> int:
    """Bytes of the weights; 0 for files that are none."""
    try:
        return locate(str(path)).size_bytes
    except LocateError:
        return 0


def source_of(path: Path) -> str:
    """Where a model comes from, in words."""
    if path in map(built_in_path, BUILT_IN):
        return "built in"
    if not path.is_relative_to(hub_cache()):
        return "a file" if path.is_file() else "a folder"
    repo = path.relative_to(hub_cache()).parts[0]
    return f"{repo.removeprefix('models--').replace('--', '/', 1)} in the cache"


def homely(path: Path) -> str:
    """A path as people write it: `~` for the home folder."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if home != Path("/") and path.is_relative_to(home) else str(path)


def cached_models() -> list[Cached]:
    """Every servable model of the local cache, main revision first; what is half there is left out."""
    found: list[Cached] = []
    for repo in sorted(hub_cache().glob("models--*--*")):
        name = repo.name.removeprefix("models--").replace("--", "/", 1)
        for snapshot in sorted((repo / "snapshots").glob("*")):
            for path in first_parts(snapshot) or [snapshot]:
                try:
                    located = locate(str(path))
                except LocateError:
                    continue
                reference = reference_to(name, path)
                found.append(Cached(reference, located.backend, str(located.path), located.size_bytes))
    return found


def reference_to(repo: str, path: Path) -> str:
    """The short `hf:` form where it means this very path, else the path."""
    quant = _QUANT.search(path.name) if path.is_file() else None
    short = f"hf:{repo}:{quant[1]}" if quant else f"hf:{repo}"
    try:
        return short if locate(short).path == path else str(path)
    except LocateError:
        return str(path)
