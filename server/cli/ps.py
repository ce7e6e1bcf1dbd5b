"""`onecard ps`: the server's status as a table with a bar of the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.cli.client import client_for
from server.cli.configuration import loaded_or_exit
from server.cli.console import stdout, write_json
from server.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

_BAR_CELLS = 40


def show_status(*, url: str | None, config: Path | None, as_json: bool) -> None:
    """Ask `/v1/status` and show it; exit code 4 when no server answers."""
    settings = loaded_or_exit(config).settings
    status = client_for(url, settings).get("/v1/status")
    if as_json:
        write_json(status)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "STATE", "MEMORY", "CONTEXT", "BUSY", "TOK/S", "IDLE", "UNTIL"):
        table.add_column(title, justify="left" if title in ("NAME", "STATE") else "right", no_wrap=title != "NAME")
    for model in status["models"]:
        table.add_row(*(Text(cell) for cell in row(model, on_card=status["memory"]["device"] != "cpu")))
    console = stdout()
    console.print(table)
    console.print(Text(bar(status)), soft_wrap=True)
    if status["queue"]:
        console.print(
            Text("waiting: " + ", ".join(f"{item['waiting']} for {item['model']}" for item in status["queue"]))
        )


def row(model: dict[str, Any], *, on_card: bool) -> list[str]:
    """The cells of one model; `-` where the server knows nothing."""
    name = model["name"] + (" (pinned)" if model.get("pinned") else "")
    layers, total = model.get("gpu_layers"), model.get("n_layers")
    partly = f" {layers}/{total} layers" if on_card and layers is not None and total and layers < total else ""
    return [
        name,
        f"{model['state']}{partly}",
        f"{_size(model.get('predicted_bytes'))}/{_size(model.get('measured_bytes'))}",
        _plain(model.get("context")),
        f"{model.get('busy') or 0}/{_plain(model.get('parallel'))}",
        _plain(model.get("tokens_per_s"), digits=1),
        _duration(model.get("idle_s")),
        _duration(model.get("unload_in_s")),
    ]


def bar(status: dict[str, Any]) -> str:
    """`[####....] 1.2 GiB of 11.2 GiB, cuda` with other programs' share as `+`."""
    memory = status["memory"]
    budget, reserved = memory["budget_bytes"] or 0, memory["reserved_bytes"] or 0
    cells = round(_BAR_CELLS * min(1.0, reserved / budget)) if budget else 0
    drawn = "#" * cells + "." * (_BAR_CELLS - cells)
    others = f", others hold {format_size(memory['other_bytes'])}" if memory.get("other_bytes") else ""
    return f"[{drawn}] {format_size(reserved)} of {format_size(budget)} on {memory['device']}{others}"


def _size(n_bytes: int | None) -> str:
    return format_size(n_bytes).replace(" ", "") if n_bytes else "-"


def _plain(value: float | None, *, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0:
        return "for ever"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
