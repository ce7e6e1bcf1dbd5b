"""How questions are typed: with prompt_toolkit, and line by line where a terminal can do no more than that."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import termios
from typing import TYPE_CHECKING, Final, Protocol

from server.cli.chat.parsing import is_command, wants_more
from server.cli.console import say

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from server.cli.chat.history import History

PROMPT: Final = "you: "
_MORE: Final = "...  "
_INPUT, _LOCAL = 0, 3
"""Places of the flags in what `termios` gives."""
_PASTED_AT_ONCE_S: Final = 0.02
"""Lines that lie there this soon after one another were pasted."""


class Keyboard(Protocol):
    """Where lines come from."""

    reads_keys: bool
    """Whether it reads keys; else the kernel makes lines of them."""

    def ask(self, *, prompt: str = PROMPT) -> str:
        """What is typed, of one line or more. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
        ...

    def redraw(self) -> None:
        """Something beside the line has changed. Any thread may say so."""
        ...


def keyboard_for(
    history: History, words: Mapping[str, Sequence[str]], *, aside: Callable[[], str] = lambda: ""
) -> Keyboard:
    """The best one that this terminal can do; `words` are what may follow a command, for the Tab key.

    What `aside` gives is shown at the edge of the line while it is typed, where the terminal can.
    """
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return LineKeyboard(history)
    from server.cli.chat.editor import Editor

    return Editor(history, words, aside)


class LineKeyboard:
    """Lines as the kernel gives them; those that were pasted together are one text."""

    reads_keys = False

    def __init__(self, history: History) -> None:
        self._history = history
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._ahead = ""

    def ask(self, *, prompt: str = PROMPT) -> str:
        """As the protocol says."""
        sys.stderr.write(prompt)
        sys.stderr.flush()
        text = self._line()
        while wants_more(text) or (self._has_more() and not is_command(text)):
            if not self._has_more():
                sys.stderr.write(_MORE)
                sys.stderr.flush()
            text = f"{text}\n{self._line()}"
        if text.strip():
            self._history.add(text)
        return text

    def redraw(self) -> None:
        """Nothing stands beside the line here."""

    def _line(self) -> str:
        while "\n" not in self._ahead:
            data = os.read(sys.stdin.fileno(), 65536)
            if not data:
                say("")
                raise EOFError
            self._ahead += self._decode(data)
        line, _, self._ahead = self._ahead.partition("\n")
        return line

    def _has_more(self) -> bool:
        return "\n" in self._ahead or bool(select.select([sys.stdin], [], [], _PASTED_AT_ONCE_S)[0])


@contextlib.contextmanager
def silent_keys(*, as_keys: bool) -> Generator[None, None, None]:
    """What is typed meanwhile does not appear, and waits: as lines, or as keys, of which Ctrl-D is one."""
    try:
        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (termios.error, ValueError, OSError):
        yield
        return
    quiet = termios.tcgetattr(number)
    quiet[_LOCAL] &= ~termios.ECHO
    if as_keys:
        quiet[_LOCAL] &= ~termios.ICANON
        quiet[_INPUT] &= ~termios.ICRNL
    termios.tcsetattr(number, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
