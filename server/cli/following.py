"""How far something is, on one line of a terminal that is gone at the end; and a server's work, followed to its end."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from server.cli.console import harmless, say

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_S: Final = 0.5
_COMMENT: Final = re.compile(r"(?:loading .* (?P<loaded>\d+%)|queued position=(?P<position>\d+))(?: estimate_s=(\d+))?")
"""What the server says to a client whose job has not begun."""


class PassingLine:
    """On stderr where that is a terminal, and nothing elsewhere."""

    def __init__(self) -> None:
        self._tells = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """In place of what stood there."""
        if self._tells:
            sys.stderr.write(f"\r\x1b[K{harmless(text)}")
            sys.stderr.flush()

    def clear(self) -> None:
        """What is written next stands at the line's beginning."""
        self.show("")


def waiting_in_words(model: str, comment: str) -> str | None:
    """A comment of the server to a client whose job has not begun; None for any other."""
    match = _COMMENT.match(comment)
    if match is None:
        return None
    if match["loaded"]:
        return f"loading {model}, {match['loaded']}"
    return f"waiting for {model}, place {match['position']} in the queue"


def follow(
    work: dict[str, Any],
    *,
    look: Callable[[], dict[str, Any]],
    rests: Callable[[dict[str, Any]], bool],
    tell: Callable[[dict[str, Any]], None],
    line: PassingLine,
    command: str,
    own: bool,
) -> dict[str, Any]:
    """Tell what work is at, look after look, until it rests: how it is then.

    Who interrupts is told that the server goes on, or the next one where this one is the command's `own`.
    """
    try:
        while True:
            tell(work)
            if rests(work):
                return work
            time.sleep(_LOOK_S)
            work = look()
    except KeyboardInterrupt:
        line.clear()
        then = "the next server goes on with it" if own else "the server goes on with it"
        say(f"{then}: `{command}` follows it, --cancel ends it")
        raise
    finally:
        line.clear()
