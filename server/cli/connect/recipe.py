"""What a client is told, as data: texts to copy, files to write, and what else a person has to know."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.connect.edits import fresh

if TYPE_CHECKING:
    from server.cli.connect.edits import Change, Format


@dataclass(frozen=True)
class Text:
    """Something to copy: commands, code, or what to enter where."""

    title: str
    language: str
    text: str


@dataclass(frozen=True)
class File:
    """A file of the client's, and what it has to hold."""

    path: Path
    format: Format
    changes: tuple[Change, ...]

    @property
    def title(self) -> str:
        """The path as people write it."""
        home = Path.home()
        return f"~/{self.path.relative_to(home)}" if self.path.is_relative_to(home) else str(self.path)

    @property
    def language(self) -> str:
        """Of the text, for a page."""
        return "json" if self.format == "jsonc" else self.format

    @property
    def text(self) -> str:
        """All of it, where there is no such file yet."""
        return fresh(self.format, self.changes).rstrip("\n")


@dataclass(frozen=True)
class Recipe:
    """Everything for one client."""

    pieces: tuple[Text | File, ...]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[File]:
        """Those that `--write` writes."""
        return [piece for piece in self.pieces if isinstance(piece, File)]


def folder(variable: str, usual: str) -> Path:
    """The folder an environment variable names, else the usual one; a relative one of the XDG variables is none."""
    named = Path(os.environ.get(variable, "")).expanduser()
    ignored = not os.environ.get(variable) or (variable.startswith("XDG_") and not named.is_absolute())
    return Path(usual).expanduser() if ignored else named
