"""A command with a terminal of its own, as a person has it, and what that person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pyte

ENTER = "\r"
CTRL_C = "\x03"
CTRL_D = "\x04"
UP = "\x1b[A"


class Terminal:
    """One `onecard` in a pseudo-terminal."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        term: str = "dumb",
        columns: int = 80,
    ) -> None:
        self._master, slave = pty.openpty()
        self._screen = pyte.Screen(columns, 40)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            env={**{k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}, "TERM": term},
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # The terminal becomes the controlling one, so that Ctrl-C typed there is a signal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""
        """What came since the last thing that was expected, with its escape sequences."""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def paste(self, text: str) -> None:
        """As a terminal pastes that says so."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int) -> None:
        self._screen.resize(columns=columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def expect(self, text: str, *, within_s: float = 20) -> None:
        """Wait for this in what it writes."""
        self._wait(lambda: text in self.seen, f"no {text!r}", within_s)
        self.seen = self.seen.split(text, 1)[1]

    def shows(self, *rows: str, within_s: float = 20) -> None:
        """Wait until the screen ends with these rows."""
        self._wait(lambda: self.rows()[-len(rows) :] == [*rows], f"the screen does not end with {rows}", within_s)

    def shows_in_one_row(self, *texts: str, within_s: float = 20) -> None:
        """Wait until a row of the screen holds all of these."""
        found = lambda: any(all(text in row for text in texts) for row in self.rows())  # noqa: E731 - said once
        self._wait(found, f"no row holds {texts}", within_s)

    def rows(self) -> list[str]:
        """What a person sees, without empty rows at the end."""
        rows = [row.rstrip() for row in self._screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def ends(self) -> int:
        return self.process.wait(20)

    def _wait(self, condition, problem: str, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{problem} in {self.seen!r}\n" + "\n".join(self.rows())
            data = os.read(self._master, 4096)
            self._stream.feed(data)
            self.seen += data.decode(errors="replace")
