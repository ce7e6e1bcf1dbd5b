"""`onecard doctor`: every finding with its remedy, or as JSON; exit code 1 where there is a problem."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from server.cli.arguments import AsJson, ConfigFile, Url
from server.cli.console import ExitCode, write, write_json

if TYPE_CHECKING:
    from server.cli.doctor.findings import Finding


def doctor(
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Look over the card, engines, disks, configuration, port and service; exit code 1 when there is a problem.

    Nothing is loaded or changed, and no network is needed. The server that --url names is asked too.
    """
    from server.cli.doctor.findings import worst

    found = examine(config, url)
    if as_json:
        write_json([asdict(one) for one in found])
    else:
        _show(found)
    if worst(found) == "problem":
        raise typer.Exit(ExitCode.ERROR)


def examine(config: Path | None, url: str | None = None) -> list[Finding]:
    """Everything there is to find; where the configuration is broken, the rest is looked at with the defaults."""
    from server.cli.doctor import machine, setup
    from server.cli.service.unit import findings as service
    from server.settings.config import Settings

    found, settings = setup.configuration(config)
    used = settings or Settings()
    port = setup.look_at_port(used)
    named = setup.look_at_port(used, url) if url else port
    return [
        *setup.versions(),
        *machine.machine(used.memory, setup.pids_of(port, named)),
        *found,
        *(setup.models(settings) if settings is not None else []),
        *setup.port(port),
        *(setup.named_server(named) if named.url != port.url else []),
        *setup.proxies(),
        *service(),
    ]


def _show(found: list[Finding]) -> None:
    """A line each, the remedy below it; long ones are wrapped by the terminal."""
    from server.cli.logs import one_line

    width = max(len(one.subject) for one in found)
    for one in found:
        write(f"{one.level:<7}  {one.subject:<{width}}  {one_line(one.text)}")
        if one.remedy:
            write(f"{'':<7}  {'':<{width}}  -> {one_line(one.remedy)}")
    n = {level: sum(one.level == level for one in found) for level in ("problem", "warning", "note")}
    write(", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in n.items()))
