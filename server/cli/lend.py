"""`onecard lend`: a program runs with memory that the server's models have made free, and give back after it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.arguments import ConfigFile, Url

if TYPE_CHECKING:
    from collections.abc import Generator

    from server.cli.client import Client

_PATH = "/v1/memory/lease"
_HOLDS_S = 300.0
"""A lease whose holder is gone without a word ends after so long."""
_RENEW_EVERY_S = 60.0
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


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
    if shutil.which(command[0]) is None:  # no model leaves for a slip of the pen
        raise CliError(f"{command[0]}: there is no such program", ExitCode.USAGE)
    client = client_for(url, loaded_or_exit(config).settings)
    asked = {"bytes": n_bytes, "seconds": _HOLDS_S, "name": Path(command[0]).name[:64]}
    program = _Program(command)
    with program.answers_signals(), _held(_Lease(client, asked)):
        say(f"{format_size(n_bytes)} are lent to {command[0]}")
        code = program.run()
    raise typer.Exit(code)


class _Lease:
    """One of a server's, which is asked for it anew where it has been started anew."""

    def __init__(self, client: Client, asked: dict[str, Any]) -> None:
        self._client, self._asked = client, asked
        self._id: str | None = None

    def take(self) -> None:
        """Raises CliError where there is no such room."""
        self._id = self._client.post(_PATH, self._asked)["id"]

    def renew(self) -> None:
        """Raises CliError."""
        from server.cli.console import CliError, say

        try:
            self._client.post(f"{_PATH}/{self._id}", {"seconds": _HOLDS_S})
        except CliError:
            if self._holds():
                raise
            self.take()
            say("the server had forgotten the lease, and has lent anew")

    def give_back(self) -> None:
        """And say so. One that the server has forgotten is given back already."""
        from server.cli.console import CliError, say
        from server.settings.sizes import format_size

        if self._id is None:
            return
        try:
            try:
                self._client.delete(f"{_PATH}/{self._id}")
            except CliError:
                if self._holds():
                    raise
        except CliError as problem:
            told = f"Unless the server has ended, it holds for {_HOLDS_S / 60:g} minutes at most"
            say(f"the lease could not be given back: {problem.message}. {told}")
        else:
            say(f"{format_size(self._asked['bytes'])} are given back")

    def _holds(self) -> bool:
        """Whether the server knows it. Raises CliError."""
        return any(lease["id"] == self._id for lease in self._client.get(_PATH)["data"])


@contextlib.contextmanager
def _held(lease: _Lease) -> Generator[None, None, None]:
    """Taken, renewed again and again, and given back at the end. Raises CliError where there is no such room."""
    from server.cli.console import CliError, say

    done = threading.Event()

    def renew() -> None:
        told = ""
        while not done.wait(_RENEW_EVERY_S):
            try:
                lease.renew()
                told = ""
            except CliError as problem:
                if problem.message != told:
                    say(f"the lease could not be renewed, and is asked for again every minute: {problem.message}")
                told = problem.message

    renewing = threading.Thread(target=renew, daemon=True)
    try:
        lease.take()
        renewing.start()
        yield
    finally:
        done.set()
        if renewing.is_alive():
            renewing.join()
        lease.give_back()


def _heeded(signals: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Those that are not ignored: under `nohup` the command goes on ignoring them, and we do."""
    return [one for one in signals if signal.getsignal(one) is not signal.SIG_IGN]


class _Program:
    """The command, and the signals that it gets in our place."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] | None = None
        """Signals that came while it was being started; None before."""

    @contextlib.contextmanager
    def answers_signals(self) -> Generator[None, None, None]:
        """Those that end us are the command's to answer once it is there; before it they end us in good order."""
        before = {one: signal.getsignal(one) for one in (*_ENDING, *_OF_TERMINAL)}
        for one in _heeded(_ENDING):
            signal.signal(one, self._on_signal)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def run(self) -> int:
        """Its exit code, as a shell has it. Raises CliError where it cannot be started."""
        from server.cli.console import CliError, ExitCode

        self._early = []
        for one in _heeded(_OF_TERMINAL):  # a terminal tells the command itself
            signal.signal(one, lambda *_: None)  # which would go on ignoring what is ignored here
        try:
            self._process = process = subprocess.Popen(self._command)
        except OSError as problem:
            told = (problem.strerror or "it cannot be started").lower()
            raise CliError(f"{self._command[0]}: {told}", ExitCode.USAGE) from None
        for number in self._early:
            process.send_signal(number)
        code = process.wait()
        return code if code >= 0 else 128 - code

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._process is not None:
            self._process.send_signal(number)
        elif self._early is not None:
            self._early.append(number)
        else:
            raise SystemExit(128 + number)
