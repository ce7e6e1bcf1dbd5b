"""`onecard search`: repositories of the hub, those with GGUF files first, and the sizes of what they hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final

from server.cli.console import CliError, ExitCode, harmless, say, stdout, write_json
from server.hub.choice import Choice, ggufs
from server.hub.repository import Found, HubError, look_up, search
from server.settings.references import HubReference
from server.settings.sizes import format_size

_AT_ONCE: Final = 6
_SHOWN: Final = 6


def show_found(words: str, *, limit: int, as_json: bool) -> None:
    """Print what a search finds. Raises CliError."""
    try:
        found = search(words, limit)
    except HubError as problem:
        raise CliError(problem.message, ExitCode.UNREACHABLE if problem.unreachable else ExitCode.ERROR) from None
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        choices = list(threads.map(_choices, found))
    if as_json:
        write_json([{**asdict(one), "files": _sizes(files)} for one, files in zip(found, choices, strict=True)])
        return
    if not found:
        say(f"nothing is found for '{words}'. hint: fewer or other words")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("MODEL", "DOWNLOADS", "SIZES"):
        table.add_column(title, justify="right" if title == "DOWNLOADS" else "left", overflow="fold")
    for one, files in zip(found, choices, strict=True):
        table.add_row(Text(harmless(one.name)), str(one.downloads), Text(harmless(_words(one, files))))
    stdout().print(table)
    say("hint: `onecard pull MODEL` takes the largest that fits, `onecard pull MODEL:Q4_K_M` a certain one")


def _choices(one: Found) -> list[Choice]:
    """The GGUF files; none where the hub does not tell them."""
    if not one.gguf or one.gated:
        return []
    try:
        return ggufs(look_up(HubReference(one.name, None, "main")).files)
    except HubError:
        return []


def _sizes(files: list[Choice]) -> list[dict[str, Any]]:
    return [{"quant": choice.label, "size_bytes": choice.size_bytes} for choice in files]


def _words(one: Found, files: list[Choice]) -> str:
    if one.gated:
        return "gated: its terms want to be accepted first"
    if not files:
        return "a folder for transformers" if not one.gguf else "-"
    told = [f"{choice.label} {format_size(choice.size_bytes)}" for choice in files[:_SHOWN]]
    return ", ".join(told) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
