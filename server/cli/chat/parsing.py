"""What a line of a chat means: a question, or one of the commands. Pure; what commands do is `commands`' to say."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

QUOTES: Final = '"""'
"""Around text of several lines, for keyboards that have no Alt-Enter."""
COMMANDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "help": ("", "this list"),
        "model": ("[NAME]", "ask another model from now on; alone: which there are"),
        "system": ("[TEXT]", 'the system message; alone: what it is; "" removes it'),
        "set": ("[NAME [VALUE]]", "a field of the request, such as temperature 0.2; null gives it back"),
        "think": ("[on|off|...]", "whether the model reasons first, whether you see it (show, hide)"),
        "image": ("FILE ...", "send images with the next question"),
        "audio": ("FILE ...", "send sounds with the next question"),
        "file": ("FILE ...", "send text files with the next question"),
        "save": ("FILE", "write the conversation as JSON"),
        "load": ("FILE", "go on with a saved conversation"),
        "clear": ("", "forget the conversation; the system message stays"),
        "retry": ("", "ask the last question again"),
        "bye": ("", "end; so do /exit, /quit and Ctrl-D"),
    }
)
"""Name -> what follows it, and what it does."""
_ALSO: Final[Mapping[str, str]] = MappingProxyType({"exit": "bye", "quit": "bye", "?": "help"})
_COMMAND = re.compile(r"/(?![/*])([^\s/]*)(?:\s+(.*))?", re.DOTALL)
"""Neither a path (`/etc/hosts`) nor a comment of a program (`// x`, `/* x`)."""


class LineError(ValueError):
    """A line that means nothing; says why, and what to do."""


@dataclass(frozen=True)
class Question:
    """Text for the model."""

    text: str


@dataclass(frozen=True)
class Command:
    """A command with what stands behind its name."""

    name: str
    rest: str = ""

    def words(self) -> list[str]:
        """The rest as a shell splits it: quotes hold words together. Raises LineError."""
        try:
            return shlex.split(self.rest)
        except ValueError:
            raise LineError("a quotation mark is never closed") from None


def parse(line: str) -> Question | Command | None:
    """What a line means; None for an empty one. Raises LineError for a command that there is not."""
    if not line.strip():
        return None
    match = _COMMAND.fullmatch(line)
    if match is None:
        return Question(_plain(line))
    written, rest = match[1].lower(), (match[2] or "").strip()
    name = _ALSO.get(written, written)
    if name not in COMMANDS:
        like = nearest(name, [*COMMANDS, *_ALSO])
        hint = f"did you mean /{like}" if like else "/help lists them"
        raise LineError(f"there is no command /{match[1]}. hint: {hint}; a space in front sends it as it is")
    if rest and not COMMANDS[name][0]:
        raise LineError(f"/{name} takes nothing behind it. hint: a space in front sends it as it is")
    return Command(name, rest)


def wants_more(text: str) -> bool:
    """Whether Enter begins another line: behind a backslash, or within three quotation marks."""
    return text.endswith("\\") or (text.lstrip().startswith(QUOTES) and text.count(QUOTES) == 1)


def is_command(text: str) -> bool:
    """Whether a line is one that Enter always ends."""
    return _COMMAND.fullmatch(text) is not None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like what was written; None where none is."""
    return next(iter(difflib.get_close_matches(name.lower(), names, n=1)), None)


def _plain(text: str) -> str:
    """Without what only says that more lines follow."""
    bare = text.strip()
    if bare.startswith(QUOTES) and bare.endswith(QUOTES) and len(bare) >= 2 * len(QUOTES):
        return bare[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text.replace("\\\n", "\n")
