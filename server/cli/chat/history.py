"""What was typed in earlier chats: one JSON string a line, in the user's state folder, for this user only."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Final

from server.cli.output import sentence
from server.own_folder import user_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SWITCH: Final = "ONECARD_HISTORY"
MOST_ENTRIES: Final = 1000
MOST_BYTES: Final = 1 << 20
_MOST_ENTRY_BYTES: Final = 32 << 10
"""A pasted file is not what one looks for with the arrow keys."""


def history_file() -> Path | None:
    """Where it lies; None where the user wants none."""
    if os.environ.get(SWITCH, "1").strip().lower() in ("0", "off", "false", "no", ""):
        return None
    return user_folder("XDG_STATE_HOME", "~/.local/state") / "run-history.jsonl"


class History:
    """The entries of one file, oldest first. What cannot be read or written is told once, and the chat goes on."""

    def __init__(self, path: Path | None, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell

    def load(self) -> list[str]:
        """What was typed before; a file that has grown too large is cut."""
        if self._path is None:
            return []
        try:
            lines = self._lines(self._path)
            if len(lines) > 2 * MOST_ENTRIES or sum(map(len, lines)) > MOST_BYTES:
                lines = self._cut(self._path, lines)
        except FileNotFoundError:
            return []
        except OSError as problem:
            self._give_up(problem)
            return []
        return [entry for line in lines if (entry := _entry(line)) is not None]

    def add(self, text: str) -> None:
        """Keep one more."""
        line = json.dumps(text).encode("ascii") + b"\n"
        if self._path is None or len(line) > _MOST_ENTRY_BYTES:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            with os.fdopen(number, "ab", buffering=0) as file:
                _require_file(number, self._path)
                file.write(line)  # at once: chats in two terminals share the file
        except OSError as problem:
            self._give_up(problem)

    def _lines(self, path: Path) -> list[bytes]:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            _require_file(file.fileno(), path)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * MOST_BYTES))
            return file.read(2 * MOST_BYTES).splitlines(keepends=True)

    def _cut(self, path: Path, lines: list[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        for line in reversed(lines[-MOST_ENTRIES:]):
            if sum(map(len, kept)) + len(line) > MOST_BYTES // 2:
                break
            kept.insert(0, line)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.writelines(kept)
        new.replace(path)
        return kept

    def _give_up(self, problem: OSError) -> None:
        self._tell(f"no history is kept: {sentence(problem)}")
        self._path = None


def _require_file(number: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(number).st_mode):
        raise OSError(None, "it is no file", str(path))


def _entry(line: bytes) -> str | None:
    """What a line holds; None where it was cut or is not ours."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) else None
