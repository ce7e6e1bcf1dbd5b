"""`onecard service install|uninstall` and `onecard logs`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.arguments import ConfigFile
from server.cli.console import CliError, ExitCode, say, write

if TYPE_CHECKING:
    from collections.abc import Callable

service_app = typer.Typer(help="Run the server as a service of yours, by systemd.", no_args_is_help=True)


@service_app.command("install")
def install(
    config: ConfigFile = None,
    now: Annotated[bool, typer.Option("--now", help="Start it too; anew where it runs.")] = False,
) -> None:
    """Write a unit for your systemd and enable it; again after an upgrade does no harm."""
    from server.cli.configuration import loaded_or_exit, refuse_open_listener
    from server.cli.service import systemd, unit

    refuse_open_listener(loaded_or_exit(config).settings)
    path = unit.place()
    if path.exists() and not unit.ours():
        raise CliError(f"{path} is there and was not written by onecard. hint: remove it, then again")
    if not systemd.there():
        hint = "run `onecard serve` by what starts services here"
        raise CliError(f"systemd is not installed here. Nothing was changed. hint: {hint}")
    before = path.read_bytes() if path.exists() else None
    text = unit.text(config, os.environ)
    made = [folder for folder in (path.parent, path.parent.parent) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        systemd.systemctl("daemon-reload")
        systemd.systemctl("enable", unit.NAME)
    except systemd.SystemdError as problem:
        _restore(path, before, made)
        raise _told(problem, " Nothing was changed.") from None
    write(f"{'wrote' if before is None else 'up to date:'} {path}")
    if now:
        _tell(lambda: systemd.systemctl("restart", unit.NAME))
        write("started; `onecard logs -f` shows what it says, `onecard ps` what it serves")
    else:
        say(f"hint: `systemctl --user start onecard` starts it, `{_again(config)} --now` does both")
    if not unit.lingers():
        say("note: it starts with your session and ends with it. hint: `loginctl enable-linger` lets it run always")
    for name in sorted(name for name in os.environ if name.startswith("ONECARD_")):
        say(f"note: {name} is set here, and the service does not get it. hint: put it into the configuration")


@service_app.command("uninstall")
def uninstall() -> None:
    """Stop the service and remove its unit; configuration, models and caches stay."""
    from server.cli.service import systemd, unit

    path = unit.place()
    if not path.exists():
        raise CliError(f"there is no {path}, so there is nothing to remove")
    if not unit.ours():
        raise CliError(f"{path} was not written by onecard, so it is left as it is")
    _tell(lambda: systemd.systemctl("disable", "--now", unit.NAME))
    path.unlink()
    _tell(lambda: systemd.systemctl("daemon-reload"))
    write(f"stopped, and removed {path}")


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, metavar="N", help="Lines from before.")] = 200,
) -> None:
    """Show the log of the service; a server in a terminal writes its log there."""
    from server.cli.service import systemd, unit

    whose = ["--user"] if unit.place().exists() else []
    if not whose and unit.system_unit() is None:
        raise CliError(
            "no service is installed, and a server in a terminal writes its log there. "
            "hint: `onecard service install`, or `onecard serve 2> onecard.log`",
            ExitCode.USAGE,
        )
    bounds = ["--lines", str(lines), "--output", "cat", *(["--follow"] if follow else [])]
    systemd.journal([*whose, "--unit", unit.NAME, *bounds])


def _restore(path: Path, before: bytes | None, made: list[Path]) -> None:
    """As it was."""
    if before is not None:
        path.write_bytes(before)
        return
    path.unlink(missing_ok=True)
    for folder in made:
        folder.rmdir()


def _tell(call: Callable[[], object]) -> None:
    """Raises CliError."""
    from server.cli.service.systemd import SystemdError

    try:
        call()
    except SystemdError as problem:
        raise _told(problem) from None


def _told(problem: Exception, then: str = "") -> CliError:
    text, hint, remedy = str(problem).partition(" hint:")
    return CliError(f"{text}{'' if text.endswith('.') else '.'}{then}{hint}{remedy}")


def _again(config: Path | None) -> str:
    return "onecard service install" + ("" if config is None else f" --config {shlex.quote(str(config))}")
