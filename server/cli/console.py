"""How every command speaks: exit codes, errors as one sentence on stderr, data on stdout."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class ExitCode(IntEnum):
    """What scripts can rely on."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DOES_NOT_FIT = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class CliError(Exception):
    """A command that cannot do its work: the sentence the user sees and the exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def stdout() -> Console:
    """Rich console for tables; `NO_COLOR` and pipes turn colour off."""
    from rich.console import Console

    return Console(highlight=False)


def say(text: str) -> None:
    """One line for a person, on stderr: stdout holds what was asked for."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def write(text: str, *, end: str = "\n") -> None:
    """Output as it is, at once, never wrapped."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """A JSON document on stdout."""
    write(json.dumps(value, indent=2, ensure_ascii=False))
