"""Runs the children of an installation: their output goes to a log, what they are at becomes a line that moves."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

FIRST_S = 2.0
"""A wait shows what it is at after so long."""
EVERY_S = 10.0
"""Where nothing can move, a line so often."""
_ENDS_WITHIN_S = 10.0
_NINJA = re.compile(r"\[(\d+)/(\d+)\]")
_PIP = re.compile(
    r"\s*(?:(Collecting|Downloading|Processing|Building wheel for)\s+(\S+)"
    r"|(Installing collected packages|Installing build dependencies|Preparing metadata|Getting requirements))"
)


def say(text: str) -> None:
    """One line of what happens now."""
    print(f"onecard: {text}", flush=True)


class Progress:
    """What a child is at: one moving line on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, *, moving: bool | None = None) -> None:
        self._what = what
        self._start = time.monotonic()
        self._due = self._start + FIRST_S
        self._moving = sys.stdout.isatty() if moving is None else moving
        self._shown = False

    def read(self, line: str) -> None:
        """Take a line of its output."""
        if match := _NINJA.search(line):
            self._what = f"compiling llama.cpp {match[1]}/{match[2]}"
        elif (match := _PIP.match(line)) and match[3]:
            self._what = match[3].lower()
        elif match:
            name = match[2].rpartition("/")[2].strip(",:")
            self._what = f"{match[1].lower()} {name}"

    def tick(self, now: float) -> None:
        """Show what it is at, if that is due."""
        if now < self._due:
            return
        self._due = now + (0.2 if self._moving else EVERY_S)
        minutes, seconds = divmod(int(now - self._start), 60)
        line = f"onecard: {self._what} ({minutes}:{seconds:02})"
        width = shutil.get_terminal_size().columns
        print(f"\r{line[: width - 1]}\033[K" if self._moving else line, end="" if self._moving else "\n", flush=True)
        self._shown = True

    def end(self) -> None:
        """Wipe the moving line."""
        if self._moving and self._shown:
            print("\r\033[K", end="", flush=True)


def run(command: list[str], *, log: Path, what: str, cwd: Path, environ: Mapping[str, str]) -> int:
    """Run a child to its end; its exit code. It and all of its own end with this process's interruption."""
    progress = Progress(what)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        _told_to_end() as told,
        log.open("wb") as sink,
        subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            _follow(process.stdout, sink, progress, told)
        except BaseException:
            _end(process)
            raise
        finally:
            progress.end()
    return process.returncode


@contextlib.contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """The signals to end that come meanwhile: an exception while a child is being started would leave it alone."""
    told: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in held:
        signal.signal(number, lambda got, _: told.append(got))
    try:
        yield told
    finally:
        for number in held:
            signal.signal(number, before[number] or signal.SIG_DFL)


def _follow(output: IO[bytes], sink: IO[bytes], progress: Progress, told: list[int]) -> None:
    """Copy a child's output until it ends, and tick meanwhile. Raises KeyboardInterrupt once a signal is told."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=0.2):
                data = os.read(output.fileno(), 65536)
                if not data:
                    return
                sink.write(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    progress.read(line.decode(errors="replace"))
            if told:
                raise KeyboardInterrupt
            progress.tick(time.monotonic())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_WITHIN_S)
            return
