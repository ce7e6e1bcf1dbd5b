"""How every command speaks: exit codes, errors as one sentence on stderr, data on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from server.cli.logs import JsonLines
from server.cli.output import silence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console


_UNBOUND: Final = 100_000
"""Columns of a table that goes to a file or another program."""


_VISIBLE: Final = {
    code: None if chr(code) == "\r" else chr(code).encode("unicode_escape").decode("ascii")
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}
"""Control characters, and those that turn the direction of what follows, as they are written in programs."""


class ExitCode(IntEnum):
    """What scripts can rely on."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DOES_NOT_FIT = 3
    UNREACHABLE = 4
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """In words, for `--help`."""
        return _MEANINGS[self]


_MEANINGS: Final[Mapping[ExitCode, str]] = MappingProxyType(
    {
        ExitCode.OK: "done",
        ExitCode.ERROR: "failed, and stderr says why",
        ExitCode.USAGE: "a wrong flag, value, path or configuration",
        ExitCode.DOES_NOT_FIT: "a model does not fit into the budget",
        ExitCode.UNREACHABLE: "no server answers",
        ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    }
)
EXIT_CODES: Final = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."


class CliError(Exception):
    """A command that cannot do its work: the sentence the user sees and the exit code.

    `param` is the field of the request that a server refused, None where it is none's.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.ERROR, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


def stdout() -> Console:
    """Rich console for tables; `NO_COLOR` and pipes turn colour off, and only in a terminal lines are wrapped."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUND)


def harmless(text: str) -> str:
    """Text as a terminal may show it: nothing in it moves the cursor, colours, rings or answers."""
    return text.translate(_VISIBLE)


def say(text: str) -> None:
    """One line for a person, on stderr: stdout holds what was asked for. Where stderr takes nothing, it is lost."""
    try:
        sys.stderr.write(f"{harmless(text)}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def complain(message: str) -> None:
    """Why a command ends, a line each; an event of the log where stderr is to hold nothing else."""
    as_json = any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)
    as_json = as_json or wants_json(sys.argv[1:], os.environ)
    for line in message.splitlines():
        if as_json:
            told = f"failed reason={json.dumps(line, ensure_ascii=False)}"
            say(JsonLines().format(logging.LogRecord("onecard", logging.ERROR, "", 0, told, None, None)))
        else:
            say(f"onecard: {line}")


def wants_json(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a server's log is asked for as JSON, where its configuration could not be read to the end."""
    if arguments[:1] != ["serve"]:
        return False
    flagged = " ".join(arguments).replace("--log-format=", "--log-format ")
    named = (environ.get("ONECARD_LOGGING__FORMAT"), environ.get("ONECARD_LOGGING_FORMAT"))
    return "--log-format json" in flagged or ("--log-format" not in flagged and "json" in named)


def write(text: str, *, end: str = "\n") -> None:
    """Output as it is, at once, never wrapped."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """A JSON document on stdout."""
    write(json.dumps(value, indent=2, ensure_ascii=False))


def write_json_line(value: Any) -> None:
    """A JSON document on one line of stdout."""
    write(json.dumps(value, ensure_ascii=False))


def duration(seconds: float) -> str:
    """A time to wait, roundly: `40 s`, `12 min`, `3.5 h`."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
