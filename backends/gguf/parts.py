"""The files of one GGUF model: one, or the parts of a split one, which lie side by side."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.files import foreign, model_files

if TYPE_CHECKING:
    from pathlib import Path

HUB_TAG: Final = "gguf"
"""The hub's word for repositories with such files."""
PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.ASCII)


def is_gguf(path: Path) -> bool:
    """By its name, or by its first bytes where the name says something else. Raises FileError."""
    if path.suffix.lower() == ".gguf":
        return True
    with model_files.opened(path) as file:
        return foreign.is_gguf(file.at(0, foreign.PROBE_BYTES))


def split_parts(path: Path) -> tuple[Path, ...]:
    """All files of a GGUF whose first part is `path`; the file alone when it is not split. Raises HeaderError."""
    match = PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    names = [f"{match['stem']}-{number:05}-of-{match['count']}{path.suffix}" for number in range(1, count + 1)]
    if int(match["number"]) != 1:
        raise HeaderError(f"{path.name} is not the first part of a split model. hint: name {names[0]}")
    for name in names:
        if not path.with_name(name).is_file():
            raise HeaderError(f"{name} is missing: the model is split into {count} files, which lie side by side")
    return tuple(path.with_name(name) for name in names)
