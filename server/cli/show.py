"""`onecard show`: what a model is, what it can do, what it takes and where it lies, from its files alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from backends.files import model_files
from server.cli.console import CliError, stdout, write_json
from server.cli.fit import capacity_for, entries_of, facts_of, plan_words
from server.cli.listing import homely, source_of
from server.settings.sizes import format_size

_LICENCE: Final = re.compile(r"^license:\s*[\"']?([\w.+-]{1,64})", re.MULTILINE)
_CARD_BYTES: Final = 2**20


def show_model(model: str, *, config: Path | None, as_json: bool) -> None:
    """Print what is known of it. Raises CliError."""
    _, (entry,) = entries_of([model], {}, config)
    header = facts_of(entry).header
    told: dict[str, Any] = {"name": entry.name, "backend": entry.backend, **header.about}
    told["trained_context"] = header.n_ctx_train or None
    told["gives"] = header.gives
    told["capabilities"] = header.capabilities
    told["licence"] = header.about.get("licence") or _licence(entry.path)
    told["size_bytes"] = entry.size_bytes
    told["path"], told["from"] = str(entry.path), source_of(entry.path)
    try:
        plan, _ = capacity_for(entry.path, config, {})
        told["estimate_bytes"], told["fits"], told["plan"] = plan.total_bytes, plan.fits, plan_words(plan.plan)
    except CliError as problem:
        told["estimate_bytes"], told["fits"], told["plan"] = None, None, problem.message
    told["remarks"] = list(header.remarks)
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
            table.add_row(key.removesuffix("_bytes").replace("_", " "), Text(_cell(key, value)))
    stdout().print(table)


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
