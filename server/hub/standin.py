"""A model's headers before its download: files of the full size that hold their first bytes and take no disk.

The same readers and the same estimate as of a downloaded model see them. Only a part of a file is asked of the hub.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.files import model_files
from backends.registry import recognised
from server.hub.download import pieces, repository_folder
from server.hub.repository import HubError, speaking_of

if TYPE_CHECKING:
    from server.hub.choice import Choice, RemoteFile
    from server.hub.repository import Repository

_STEPS: Final = (2 * 2**20, 16 * 2**20, 64 * 2**20)
"""Of a GGUF file: metadata and vocabulary of most models lie within the second."""
_SMALL_BYTES: Final = 32 * 2**20
_SAFETENSORS_HEADER: Final = 100 * 2**20
_LENGTH: Final = struct.Struct("<Q")


def stand_in(repository: Repository, choice: Choice, folder: Path) -> Path:
    """Put stand-ins for a model's files into an empty folder. Raises HubError, HeaderError or OSError."""
    is_folder = choice.label == "folder"
    top = folder / repository.name.rpartition("/")[2]
    top.mkdir()
    for file in choice.files:
        path = top / (file.name if is_folder else Path(file.name).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, file.size)
        if is_folder:
            _fill(repository, file, path, 0, _needed(repository, file, path))
    if is_folder:
        return top
    first = top / Path(choice.first).name
    done = 0
    for upto in _STEPS:
        for file in choice.files:
            _fill(repository, file, top / Path(file.name).name, done, upto)
        done = upto
        try:
            _check(first)
        except HeaderError:
            if upto == _STEPS[-1] or all(file.size <= upto for file in choice.files):
                raise
        else:
            break
    return first


def _check(first: Path) -> None:
    found = recognised(first)
    if found is None:
        raise HeaderError(f"{first.name} is no model")
    found[0].describe(first, {})


def _needed(repository: Repository, file: RemoteFile, path: Path) -> int:
    """The bytes of a folder's file that are read before a load."""
    if not file.name.endswith(".safetensors"):
        return min(file.size, _SMALL_BYTES)
    _fill(repository, file, path, 0, _LENGTH.size)
    with path.open("rb") as source:
        length = int(_LENGTH.unpack(source.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))[0])
    return min(file.size, _LENGTH.size + min(length, _SAFETENSORS_HEADER))


def _fill(repository: Repository, file: RemoteFile, path: Path, start: int, end: int) -> None:
    """The file's bytes from `start` to `end`, from the cache where it is there, else from the hub."""
    end = min(end, file.size)
    if start >= end:
        return
    with path.open("r+b") as target:
        target.seek(start)
        blob = repository_folder(repository.name) / "blobs" / file.etag
        if blob.is_file():
            with model_files.opened(blob) as source:
                target.write(source.at(start, end - start))
            return
        with speaking_of(repository.name, repository.revision):
            for at, piece in pieces(repository, file.name, start, end - start):
                if at > end:
                    break
                skipped = max(0, start - at)
                target.write(piece[skipped : end - at])
                if at + len(piece) >= end:
                    return
    raise HubError(f"{file.name} is shorter than the hub says", unreachable=True)
