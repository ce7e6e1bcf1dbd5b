"""`onecard ps`: the server's status as a table with a bar of the budget, once or again and again."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from server.cli.client import client_for
from server.cli.configuration import loaded_or_exit
from server.cli.console import duration, stdout, write_json
from server.cli.greeting import told
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Group
    from rich.table import Table

_TITLES = ("NAME", "STATE", "MEMORY", "CONTEXT", "BUSY", "TOK/S", "IDLE", "UNTIL")
_GIVE_WAY = ("TOK/S", "IDLE", "CONTEXT", "BUSY", "UNTIL", "MEMORY", "STATE")
"""What a narrow terminal does without, the first first."""
_BETWEEN = 2
"""Cells between two columns."""
_BAR_CELLS = 40
_TRAINING = "\0training"
"""No model has this name."""
_MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def show_status(*, url: str | None, config: Path | None, as_json: bool) -> None:
    """Ask `/v1/status` and show it; exit code 4 when no server answers."""
    status = client_for(url, loaded_or_exit(config).settings).get("/v1/status")
    if as_json:
        write_json(status)
    else:
        console = stdout()
        console.print(page(status, console.width))


def watch_status(*, url: str | None, config: Path | None, every_s: float) -> None:
    """Show it again and again until Ctrl-C or until no server answers; with a pipe behind, one page after the other."""
    from rich.live import Live

    client = client_for(url, loaded_or_exit(config).settings)
    console = stdout()
    shown = page(client.get("/v1/status"), console.width)
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            while True:
                console.print(shown)
                time.sleep(every_s)
                shown = page(client.get("/v1/status"), console.width)
        with Live(shown, console=console, auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(every_s)
                live.update(page(client.get("/v1/status"), console.width), refresh=True)


def columns_for(rows: list[list[str]], columns: int) -> list[str]:
    """The titles of a table that has room: names are never cut, so the columns that tell least give way to them."""
    from rich.cells import cell_len

    wide = {title: max(len(title), *(cell_len(row[at]) for row in rows)) for at, title in enumerate(_TITLES)}
    for title in _GIVE_WAY:
        if sum(wide.values()) + _BETWEEN * (len(wide) - 1) <= columns:
            break
        del wide[title]
    return list(wide)


def table_of(status: dict[str, Any], columns: int) -> Table:
    """A line for each model, in so many columns of a terminal."""
    from rich.table import Table
    from rich.text import Text

    marks = marks_of(status)
    rows = []
    for model in status["models"]:
        cells = row(model, on_card=status["memory"]["device"] != "cpu")
        if model["name"] in marks:
            cells[0] = f"{marks[model['name']]} {cells[0]}"
        elif marks:
            cells[0] = f"  {cells[0]}"
        rows.append(cells)
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = columns_for(rows, columns)
    for title in shown:
        left = title in ("NAME", "STATE")
        table.add_column(title, justify="left" if left else "right", no_wrap=title != "NAME", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for title, cell in zip(_TITLES, cells, strict=True) if title in shown))
    return table


def page(status: dict[str, Any], columns: int) -> Group:
    """Table, bar and queue for so many columns."""
    from rich.console import Group
    from rich.text import Text

    lines: list[Any] = [table_of(status, columns)]
    lines += [Text(line, no_wrap=True, overflow="ignore") for line in bars(status)]
    if status["queue"]:
        waiting = ", ".join(f"{item['waiting']} for {item['model']}" for item in status["queue"])
        lines.append(Text("waiting: " + waiting))
    parts = (card_warnings, unknown_names, troubles, choices, kv_caches, drafts, speeds, facts, training)
    lines += [Text(line) for part in parts for line in part(status)]
    legend = "MEMORY is what was predicted / what was measured"
    if status["memory"].get("prefix_cache_reserved_bytes"):
        legend += "; ~ is the prefix cache"
    if status.get("training"):
        legend += "; % is the job that trains"
    lines.append(Text(legend, style="dim"))
    if lent := status["memory"].get("lent_bytes"):
        lines.append(Text(f"{format_size(lent)} of the budget are lent to other programs", style="dim"))
    if headroom := status["memory"].get("headroom_bytes"):
        lines.append(
            Text(f"{format_size(headroom)} are left free: another program's use of the card grows", style="dim")
        )
    if others := status["memory"].get("other_bytes"):
        lines.append(Text(f"other programs hold {format_size(others)}", style="dim"))
    return Group(*lines)


def card_warnings(status: dict[str, Any]) -> list[str]:
    """A line for every way in which a graphics card is there and unused."""
    return [f"warning: {text}" for text in status["memory"].get("warnings") or []]


def unknown_names(status: dict[str, Any]) -> list[str]:
    """A line for every name of the configuration that is no model now."""
    return [f"warning: {text}" for text in status.get("unknown_names") or []]


def troubles(status: dict[str, Any]) -> list[str]:
    """A line for every model with broken files or an error, which is gone after its next good load."""
    lines = []
    for model in status["models"]:
        if unusable := model.get("unusable"):
            lines.append(f"{model['name']}: {' '.join(unusable.split())}")
        elif error := model.get("last_error"):
            lines.append(f"{model['name']}: last error: {' '.join(error.split())}")
    return lines


def choices(status: dict[str, Any]) -> list[str]:
    """A line for every model whose configuration or files say how tokens are chosen."""
    return [
        f"{model['name']}: {', '.join(f'{key} {value:g}' for key, value in sampling.items())} by default"
        for model in status["models"]
        if (sampling := model.get("sampling"))
    ]


def kv_caches(status: dict[str, Any]) -> list[str]:
    """A line for every loaded model whose KV cache is not of 16 or 32 bits."""
    return [
        f"{model['name']}: KV cache {f'of {keys} keys and {values} values' if values else f'of {keys}'}"
        for model in status["models"]
        if "q" in (kind := model.get("kv_type") or "") or "/" in kind
        for keys, _, values in [kind.partition("/")]
    ]


def drafts(status: dict[str, Any]) -> list[str]:
    """A line for every loaded model for which tokens were drafted."""
    return [
        f"{model['name']}: {said['accepted_tokens']} of {said['drafted_tokens']} drafted tokens came true{_by(said)}"
        for model in status["models"]
        if (said := model.get("speculation")) and said["drafted_tokens"]
    ]


def _by(said: dict[str, Any]) -> str:
    """Who drafts, where a model does."""
    kind, _, name = said["mode"].partition(":")
    return f", with {name} as draft model" if kind == "model" else ""


def speeds(status: dict[str, Any]) -> list[str]:
    """A line for every loaded model whose speed is foretold: what one request alone gets, and how wrong that was."""
    lines = []
    for model in status["models"]:
        if (speed := model.get("speed")) is not None:
            phases = (("decode", "tokens/s"), ("prefill", "tokens/s of a prompt"))
            lines.append(f"{model['name']}: {', '.join(_speed(speed, phase, unit) for phase, unit in phases)}")
    return lines


def _speed(speed: dict[str, Any], phase: str, unit: str) -> str:
    """`predicted 980 tokens/s`, or `940 tokens/s (predicted 980, -4 %)` once it is measured."""
    predicted, measured = speed[f"{phase}_tokens_per_s"], speed.get(f"measured_{phase}_tokens_per_s")
    if measured is None:
        return f"predicted {predicted:g} {unit}"
    return f"{measured:g} {unit} (predicted {predicted:g}, {100 * (speed[f'{phase}_error'] or 0):+.0f} %)"


def facts(status: dict[str, Any]) -> list[str]:
    """A line for every loaded model whose sort tells more of itself than others."""
    return [
        f"{model['name']}: {', '.join(f'{name} {value}' for name, value in said.items())}"
        for model in status["models"]
        if (said := model.get("facts"))
    ]


def training(status: dict[str, Any]) -> list[str]:
    """A line for the fine-tuning job that runs."""
    job = status.get("training")
    if job is None:
        return []
    loss = "" if job["loss"] is None else f", loss {job['loss']:.3f}"
    left = "" if job["seconds_left"] is None else f", {duration(job['seconds_left'])} left"
    at = f"step {job['step']} of {job['steps']}{loss}{left}" if job["steps"] else "is being loaded"
    still = ", stands still beside a request" if job["stands_still"] else ""
    return [f"{job['id']} teaches {job['model']}: {at}{still}"]


def marks_of(status: dict[str, Any]) -> dict[str, str]:
    """The letter of each model that holds memory, as the bar shows it."""
    holders = [m["name"] for m in status["models"] if held_bytes(m) or held_bytes(m.get("host"))]
    return {name: _MARKS[index % len(_MARKS)] for index, name in enumerate(holders)}


def held_bytes(model: dict[str, Any] | None) -> int:
    """What the ledger says of a model: what was measured, or until then what is reserved."""
    return int(model.get("measured_bytes") or model.get("predicted_bytes") or 0) if model else 0


def row(model: dict[str, Any], *, on_card: bool) -> list[str]:
    """The cells of one model; `-` where the server knows nothing."""
    name = model["name"] + (" (pinned)" if model.get("pinned") else "")
    layers, total = model.get("gpu_layers"), model.get("n_layers")
    partly = f" {layers}/{total} layers" if on_card and layers is not None and total and layers < total else ""
    kept = (("experts", model.get("expert_layers")), ("feed-forward", model.get("ffn_layers")))
    partly += "".join(f" {what} of {n} in RAM" for what, n in kept if n)
    partly += " KV cache in RAM" if model.get("kv_offload") == "host" else ""
    return [
        name,
        told(model["state"], model.get("unusable") is not None) + _progress(model) + partly,
        f"{_size(model.get('predicted_bytes'))}/{_size(model.get('measured_bytes'))}",
        _context(model),
        f"{model.get('busy') or 0}/{_plain(model.get('parallel'))}",
        _plain(model.get("tokens_per_s"), digits=1),
        _duration(model.get("idle_s")),
        _until(model),
    ]


def _progress(model: dict[str, Any]) -> str:
    """` 43 %, 3 s left` of a load under way."""
    if (share := model.get("loaded")) is None:
        return ""
    left_s = model.get("load_left_s") or 0
    return f" {100 * share:.0f} %" + (f", {left_s:.0f} s left" if left_s else "")


def _context(model: dict[str, Any]) -> str:
    """`8192`, and `8192 to 32768` of one that grows where a request needs it."""
    now, most = model.get("context"), model.get("context_max")
    return f"{now} to {most}" if now and most and most > now else _plain(now)


def bars(status: dict[str, Any]) -> list[str]:
    """`[AAAABB~.....] 1.2 GiB + 0.1 GiB of 11.2 GiB on cpu`: each share, one cell at least; on a card two of them.

    A letter is a model's, `~` is what is reserved for cached prefixes, which yield to models.
    """
    memory, job = status["memory"], status.get("training") or {}
    marks, models = {**marks_of(status), _TRAINING: "%"}, status["models"]
    on_host = {_TRAINING: job.get("host_bytes", 0)}
    if memory["device"] == "cpu":
        held = {**{model["name"]: held_bytes(model) for model in models}, **on_host}
        return [_bar(memory, held, marks, kept=_kept(memory), where="on cpu")]
    held = {model["name"]: held_bytes(model.get("device")) for model in models}
    held[_TRAINING] = job.get("device_bytes", 0)
    told = [_bar(memory, held, marks, kept=0, where=f"on {memory['device']}")]
    if (host := memory.get("host")) is not None:
        held = {**{model["name"]: held_bytes(model.get("host")) for model in models}, **on_host}
        told.append(_bar(host, held, marks, kept=_kept(memory), where="of host memory"))
    return told


def _kept(memory: dict[str, Any]) -> int:
    return int(memory.get("prefix_cache_reserved_bytes") or 0)


def _bar(side: dict[str, Any], held: dict[str, int], marks: dict[str, str], *, kept: int, where: str) -> str:
    budget, reserved = side["budget_bytes"] or 0, side["reserved_bytes"] or 0
    more = f" + {format_size(kept)}" if kept else ""
    drawn = _drawn(budget, [(marks[name], n) for name, n in held.items() if n], kept)
    return f"[{drawn}] {format_size(reserved)}{more} of {format_size(budget)} {where}"


def _drawn(budget: int, held: list[tuple[str, int]], kept: int) -> str:
    """The cells: every share is rounded where it ends, so that the shares' sum is rounded once."""
    drawn, end_bytes = "", 0
    if budget:
        for mark, n_bytes in [*held, *([("~", kept)] if kept else [])]:
            end_bytes += n_bytes
            drawn += mark * max(1, round(_BAR_CELLS * end_bytes / budget) - len(drawn))
    return drawn[:_BAR_CELLS].ljust(_BAR_CELLS, ".")


def _size(n_bytes: int | None) -> str:
    return format_size(n_bytes).replace(" ", "") if n_bytes else "-"


def _plain(value: float | None, *, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _until(model: dict[str, Any]) -> str:
    """When it leaves; a model that is busy or not loaded has no such time."""
    stays = model["state"] == "ready" and model.get("idle_s") is not None and model.get("keep_alive_s", 0) < 0
    return "for ever" if stays else _duration(model.get("unload_in_s"))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0:
        return "for ever"
    whole = int(seconds)
    for large, small, n_large, n_small in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= n_large:
            return f"{whole // n_large}{large}{whole % n_large // n_small:02}{small}"
    return f"{whole}s"
