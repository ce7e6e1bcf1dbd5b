"""API keys in a file, one per line: `KEY`, `admin KEY` or `NAME KEY`; readable by its owner (and group) only."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 64 * 1024


_ADMIN = "admin"


class KeysRead(NamedTuple):
    """What a key file holds."""

    api_keys: list[str]
    admin_keys: list[str]
    named: dict[str, str]
    """By the name of their table, `[keys.NAME]`."""


class KeyFileError(Exception):
    """The key file cannot be used; the text is a sentence that shows no key."""


def read_keys(file: Path) -> KeysRead:
    """The keys of a file; empty lines and lines that start with `#` are skipped. Raises KeyFileError."""
    try:
        info = file.stat()
        if not stat.S_ISREG(info.st_mode):
            raise KeyFileError(f"{file} is not a regular file")
        # Group-readable is accepted: systemd hands credentials to a service that way.
        if info.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            mode = stat.S_IMODE(info.st_mode)
            raise KeyFileError(f"{file} has mode {mode:04o}, so others could read or write it. hint: chmod 600 {file}")
        if info.st_size > _MAX_BYTES:
            raise KeyFileError(f"{file} has {info.st_size} bytes, a key file at most {_MAX_BYTES}")
        lines = file.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise KeyFileError(f"{file} does not exist") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{file} holds a character that is not ASCII") from None
    except OSError as problem:
        raise KeyFileError(f"{file} cannot be read: {problem.strerror}") from None
    entries = [line.split() for line in (line.strip() for line in lines) if line and not line.startswith("#")]
    if not entries:
        raise KeyFileError(f"{file} holds no key")
    named = [words for words in entries if len(words) == 2 and words[0] != _ADMIN]
    keys = KeysRead(
        [words[0] for words in entries if len(words) == 1],
        [words[1] for words in entries if len(words) == 2 and words[0] == _ADMIN],
        dict(named),
    )
    if ["admin"] in entries:
        raise KeyFileError(f"{file} has a line 'admin' without a key. hint: a line is KEY, admin KEY or NAME KEY")
    if len(keys.named) < len(named):
        raise KeyFileError(f"{file} has two keys for one name. hint: each name has one line, NAME KEY")
    every = [*keys.api_keys, *keys.admin_keys, *keys.named.values()]
    if len(every) < len(entries) or not all("!" <= char <= "~" for key in every for char in key):
        raise KeyFileError(
            f"{file} holds a key with a space or a control character in it. hint: a line is KEY, admin KEY or NAME KEY"
        )
    return keys
