"""`onecard usage`: what keys have used of the models, as a table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from server.cli.arguments import AsJson, ConfigFile, Url

_NUMBERS = ("jobs", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(
    days: Annotated[int, typer.Option("--days", "-d", min=1, max=3660, help="Today and the days before.")] = 1,
    by_day: Annotated[bool, typer.Option("--by-day", help="A line for each day.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Show the tokens that each key has used; without an admin key only your own."""
    from server.cli.client import client_for
    from server.cli.configuration import loaded_or_exit
    from server.cli.console import stdout, write_json

    lines = client_for(url, loaded_or_exit(config).settings).get(f"/v1/usage?days={days}")["data"]
    if as_json:
        write_json(lines)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = (*(("DAY",) if by_day else ()), "KEY", "MODEL")
    for title in (*titles, "JOBS", "PROMPT", "CACHED", "ANSWER"):
        table.add_column(title, justify="left" if title in titles else "right", no_wrap=True)
    for names, numbers in summed(lines, by_day=by_day).items():
        table.add_row(*(Text(name) for name in names), *(f"{number:,}" for number in numbers))
    console = stdout()
    console.print(table)
    since = "today" if days == 1 else f"in {days} days"
    console.print(Text(f"tokens {since} (UTC); CACHED is the part of PROMPT that was found computed", style="dim"))


def summed(lines: list[dict[str, Any]], *, by_day: bool) -> dict[tuple[str, ...], list[int]]:
    """The numbers of a key and model, of all days or of each."""
    found: dict[tuple[str, ...], list[int]] = {}
    for line in lines:
        names = (*((line["day"],) if by_day else ()), line["key"], line["model"])
        so_far = found.setdefault(names, [0] * len(_NUMBERS))
        for at, name in enumerate(_NUMBERS):
            so_far[at] += line[name]
    return found
