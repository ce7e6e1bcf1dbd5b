"""`onecard lend`: a program runs with memory that the server's models have made free, and give back after it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.arguments import ConfigFile, Url

if TYPE_CHECKING:
    from collections.abc import Generator

    from server.cli.client import Client

_HOLDS_S = 300.0
"""A lease whose holder is gone without a word ends after so long."""
_RENEW_EVERY_S = 60.0


def lend(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Memory the command needs: 6GiB.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The command and its arguments.")],
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Run a command with memory lent by a running server; its exit code is the command's."""
    from server.cli.client import client_for
    from server.cli.configuration import loaded_or_exit
    from server.cli.console import CliError, ExitCode, say
    from server.settings.sizes import format_size, parse_size

    try:
        n_bytes = parse_size(size)
    except ValueError as problem:
        raise CliError(f"'{size}': {problem}", ExitCode.USAGE) from None
    client = client_for(url, loaded_or_exit(config).settings)
    asked = {"bytes": n_bytes, "seconds": _HOLDS_S, "name": Path(command[0]).name[:64]}
    lease = client.post("/v1/memory/lease", asked)["id"]
    say(f"{format_size(n_bytes)} are lent to {command[0]}")
    with _held(client, lease):
        code = _run(command)
    say(f"{format_size(n_bytes)} are given back")
    raise typer.Exit(code)


@contextlib.contextmanager
def _held(client: Client, lease: str) -> Generator[None, None, None]:
    """Renewed again and again, and given back at the end."""
    from server.cli.console import CliError, say

    done = threading.Event()

    def renew() -> None:
        while not done.wait(_RENEW_EVERY_S):
            try:
                client.post(f"/v1/memory/lease/{lease}", {"seconds": _HOLDS_S})
            except CliError as problem:
                say(f"the lease could not be renewed: {problem.message}")

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        try:
            client.delete(f"/v1/memory/lease/{lease}")
        except CliError as problem:
            say(f"the lease could not be given back, and ends by itself: {problem.message}")


def _run(command: list[str]) -> int:
    """Signals that end us are the command's to answer. Raises CliError where it cannot be started."""
    from server.cli.console import CliError, ExitCode

    try:
        process = subprocess.Popen(command)
    except OSError as problem:
        told = (problem.strerror or "it cannot be started").lower()
        raise CliError(f"{command[0]}: {told}", ExitCode.USAGE) from None
    before = {
        one: signal.signal(one, lambda number, _frame: process.send_signal(number))
        for one in (signal.SIGTERM, signal.SIGHUP)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the command itself
    try:
        code = process.wait()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    return code if code >= 0 else 128 - code
