"""What a person sees of an answer: the text on stdout, everything else on stderr, and nothing that moves the cursor."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from server.cli.console import harmless, say, write
from server.cli.output import silence

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from rich.console import RenderableType
    from rich.progress import Progress

_SHOWN_AFTER_S: Final = 0.3
"""A wait that is shorter shows nothing."""


def colourful() -> bool:
    """Whether stderr takes colours."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str, *, dim: bool = True) -> None:
    """A line beside the conversation, broken between words where a terminal is narrow."""
    if not sys.stderr.isatty():
        say(harmless(text))
        return
    from rich.text import Text

    _print(Text(harmless(text), style="dim" if dim and colourful() else ""))


def table(rows: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and what is said of it, which has a column of its own."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, what in rows:
        grid.add_row(Text(harmless(name)), Text(harmless(what)))
    _print(grid)


def _print(shown: RenderableType) -> None:
    from rich.console import Console

    with contextlib.suppress(OSError):
        Console(stderr=True, highlight=False).print(shown)


class Screen:
    """Where one answer is shown. stdout is the answer alone, byte for byte where it is no terminal."""

    def __init__(self, *, thoughts: bool = True) -> None:
        self.thoughts = thoughts
        self._stdout_is_terminal = sys.stdout.isatty()
        self._last = "\n"
        """The last character that was shown."""
        self._thinking = False

    @property
    def sees_reasoning(self) -> bool:
        """Whether reasoning is shown: where it is wanted, and on a terminal alone."""
        return self.thoughts and sys.stderr.isatty()

    def reasoning(self, text: str) -> None:
        """Show more of the reasoning."""
        if not self._thinking:
            self._thinking = True
            _tell("\033[2m" if colourful() else "(thinking)\n")
        _tell(harmless(text))

    def content(self, text: str) -> None:
        """Show more of the answer."""
        self._end_thinking()
        self._last = text[-1:] or self._last
        write(harmless(text) if self._stdout_is_terminal else text, end="")

    def end(self) -> None:
        """The answer is over, also where it was stopped: what follows begins on a line of its own."""
        self._end_thinking()
        if not (self._stdout_is_terminal and self._last == "\n"):
            write("")
        self._last = "\n"

    def _end_thinking(self) -> None:
        if self._thinking:
            _tell("\033[0m\n\n" if colourful() else "\n(answer)\n")
        self._thinking = False


class Waiting:
    """What is said while nothing comes yet."""

    def __init__(self, progress: Progress | None, what: str) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task(what)
        self._lock = threading.Lock()
        self._over = False
        self._timer = threading.Timer(_SHOWN_AFTER_S, self._show)
        self._timer.daemon = True
        if progress is not None:
            self._timer.start()

    def tell(self, what: str) -> None:
        """Say something else."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=harmless(what))

    def end(self) -> None:
        """Say no more, and leave no trace; idempotent."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self._timer.cancel()
            if self._progress is not None:
                self._progress.stop()

    def _show(self) -> None:
        with self._lock:
            if self._progress is not None and not self._over:
                self._progress.start()


@contextlib.contextmanager
def waiting(what: str) -> Generator[Waiting, None, None]:
    """A spinner with the seconds that have passed, where stderr is a terminal that can show one."""
    shown = Waiting(_progress(), harmless(what))
    try:
        yield shown
    finally:
        shown.end()


def _progress() -> Progress | None:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, style="dim"),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=True,  # what is said meanwhile stands above
    )


def _tell(text: str) -> None:
    """Text on stderr, at once; lost where stderr takes nothing."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)
