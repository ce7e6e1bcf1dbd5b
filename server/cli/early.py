"""What signals mean to `onecard serve`, from its first line on. Imports nothing of ours: it has to be there at once."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""A terminal's user means what a service manager means: end, and let what runs finish."""
TELLING: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""The state of the models goes to the log."""


class Terminal:
    """The terminal that the process was started from, if any: one that closes says so by the signal that asks for the
    configuration to be read again.
    """

    def __init__(self) -> None:
        self._was_there = _is_there()

    @property
    def closed(self) -> bool:
        """There was one, and it is gone."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def heeds_hangup() -> bool:
    """Whether SIGHUP is to be taken: who starts it with nohup wants none."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def end_quietly() -> None:
    """While there is nothing to drain, a signal ends the process at once and without a traceback.

    What asks for the configuration to be read again asks for nothing: it is about to be read.
    """
    for number in ENDING:
        signal.signal(number, _exit_now)
    if heeds_hangup():
        terminal = Terminal()
        signal.signal(signal.SIGHUP, lambda number, frame: _exit_now(number, frame) if terminal.closed else None)
    for number in TELLING:
        signal.signal(number, signal.SIG_IGN)


def open_standard_files() -> None:
    """Where a parent closed stdin, stdout or stderr, the null device takes its place: else the next file would."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def hear_as_usual() -> None:
    """What signals mean to every other command."""
    for number in (*ENDING, *([signal.SIGHUP] if heeds_hangup() else []), *TELLING):
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


def _exit_now(number: int, _frame: FrameType | None) -> None:
    os._exit(0 if number in (signal.SIGHUP, signal.SIGQUIT) else 128 + number)
