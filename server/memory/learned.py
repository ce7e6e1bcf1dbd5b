"""What this machine has taught, kept between runs: sections of keys and JSON values in one small file.

It lies in the user's data folder. All of it can be measured again, so a file that is corrupt counts as empty, and one
that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any, Final

from server.own_folder import user_folder

_VERSION: Final = 1
_MOST_ENTRIES: Final = 1000
"""Per section of the file; the oldest are forgotten."""
_MOST_BYTES: Final = 16 * 2**20


def data_folder() -> Path:
    """`$XDG_DATA_HOME/onecard`, or its usual place."""
    return user_folder("XDG_DATA_HOME", "~/.local/share")


class Learned:
    """Sections of keys and JSON values."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or data_folder() / "learned.json"
        self._sections = self._read()

    def get(self, section: str, key: str) -> Any:
        """The value; None where nothing is known."""
        return self._sections.get(section, {}).get(key)

    def put(self, section: str, key: str, value: Any) -> None:
        """Keep a value, in memory until `save`."""
        entries = self._sections.setdefault(section, {})
        entries.pop(key, None)
        entries[key] = value  # the last one is the youngest
        while len(entries) > _MOST_ENTRIES:
            del entries[next(iter(entries))]

    def save(self) -> None:
        """Write the file whole or not at all; what another process wrote meanwhile is kept. Blocks on the disk."""
        merged = self._read()
        for name, entries in list(self._sections.items()):
            ours = list(entries.items())
            merged[name] = {**{k: v for k, v in merged.get(name, {}).items() if k not in entries}, **dict(ours)}
        text = json.dumps({"version": _VERSION, **merged})
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self.path.parent, prefix=".learned-", delete=False
            ) as part:
                part.write(text)
            try:
                Path(part.name).replace(self.path)
            except OSError:
                Path(part.name).unlink()

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            if self.path.stat().st_size > _MOST_BYTES:
                return {}
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            return {}
        return {name: entries for name, entries in document.items() if isinstance(entries, dict)}
