"""The child's side of questions: a short-lived process of ours that reads lines from its socket and answers each.

The server's side is `backends.border.rates` and `backends.border.dry`, which start it with `backends.border.child`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from backends.machine.kernel import die_with, limit_damage
from backends.machine.started import arguments

if TYPE_CHECKING:
    from collections.abc import Callable


def answer_lines(program: str, answer: Callable[[str], str]) -> None:
    """Answer each line on the socket `--fd` until it is closed, or until the process `--parent` ends.

    Args:
        program: The name in an error about the arguments.
        answer: Makes one line, without its end, of one line.
    """
    args = arguments(program)
    die_with(args.parent)
    limit_damage()
    with socket.socket(fileno=args.fd).makefile("rw", encoding="utf-8") as lines:
        for question in lines:
            lines.write(answer(question) + "\n")
            lines.flush()
