"""`onecard list`: the models of the configuration and those that lie in the Hugging Face cache."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from server.cli.configuration import loaded_or_exit
from server.cli.console import CliError, ExitCode, say, stdout, write_json
from server.settings.builtin import BUILT_IN, built_in_path
from server.settings.catalog import Catalog, CatalogError
from server.settings.discovery import discover, usual_places
from server.settings.references import LocateError, first_parts, hub_cache, locate
from server.settings.sizes import format_size

_QUANT = re.compile(r"[-._]((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4))(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class Cached:
    """A model in the cache."""

    reference: str
    """What may stand as a model's path."""
    backend: str
    path: str
    size_bytes: int


def show_models(config: Path | None, *, as_json: bool) -> None:
    """Print both lists."""
    try:
        settings = loaded_or_exit(config).settings
        entries = Catalog(settings).entries
    except CatalogError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    cached = cached_models()
    elsewhere = discover([*settings.server.models_dirs, *usual_places()])
    for text in elsewhere.problems:
        say(f"note: {text}")
    if as_json:
        models = [
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "backend": entry.backend,
                "path": str(entry.path),
                "from": source_of(entry.path),
                "size_bytes": entry.size_bytes,
                "missing": entry.missing,
            }
            for entry in entries
        ]
        others = [{"name": m.name, "path": str(m.path), "from": m.source} for m in elsewhere.models]
        write_json({"models": models, "cache": [asdict(model) for model in cached], "elsewhere": others})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "BACKEND", "SIZE", "PATH"):
        table.add_column(title, justify="right" if title == "SIZE" else "left", overflow="fold")
    for entry in entries:
        name = ", ".join([entry.name, *entry.aliases])
        size = format_size(entry.size_bytes) if entry.missing is None else "missing"
        table.add_row(Text(name), entry.backend, size, Text(homely(entry.path)))
    for model in cached:
        table.add_row(Text(model.reference), model.backend, format_size(model.size_bytes), Text("in the cache"))
    for other in elsewhere.models:
        table.add_row(Text(other.name), "-", format_size(size_of(other.path)), Text(f"{other.source}, by --models-dir"))
    stdout().print(table)


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
