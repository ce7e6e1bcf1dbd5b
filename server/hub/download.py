"""Fetches files of a repository into the Hugging Face cache: resumed where they broke off, and checked by content.

`huggingface_hub` keeps no half file for the next process, so the bytes are fetched here: with its session, its token,
into its cache, whose layout any other program reads. A blob gets its name only when its checksum is right, and the
reference moves only when all files are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final, Protocol

from backends.files.model_files import shown
from server.hub.repository import HubError, speaking_of
from server.settings.references import hub_cache
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from server.hub.choice import RemoteFile
    from server.hub.repository import Repository

_CHUNK_BYTES: Final = 256 * 2**10
_TRIES: Final = 5
"""In a row without one new byte."""
_PAUSE_S: Final = 1.0
_READ_S: Final = 30
_SPARE_BYTES: Final = 64 * 2**20


class Progress(Protocol):
    """Who is told how far it is."""

    def file(self, file: RemoteFile, done: int) -> None:
        """A file begins, of which so many bytes are there already."""

    def advance(self, n_bytes: int) -> None:
        """More bytes of it came; fewer than 0 where some had to be dropped."""


def repository_folder(name: str) -> Path:
    """The folder of a repository in the cache."""
    return hub_cache() / f"models--{name.replace('/', '--')}"


def missing_bytes(repository: Repository, files: Iterable[RemoteFile]) -> int:
    """What is yet to be fetched."""
    blobs = repository_folder(repository.name) / "blobs"
    return sum(0 if _is_whole(blobs / f.etag, f) else f.size - min(f.size, _size(_partial(blobs, f))) for f in files)


def check_room(repository: Repository, files: tuple[RemoteFile, ...]) -> None:
    """See that the disk has room. Raises HubError."""
    folder = hub_cache()
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = missing_bytes(repository, files), shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise HubError(
            f"{folder} has {format_size(free)} free, {format_size(needed)} are to come. "
            "hint: `onecard rm MODEL` frees some, or HF_HUB_CACHE names a folder on another disk"
        )


def fetch(repository: Repository, files: tuple[RemoteFile, ...], progress: Progress) -> Path:
    """The first file's path in the cache, once all are there and whole. Raises HubError or OSError."""
    folder = repository_folder(repository.name)
    blobs, snapshot = folder / "blobs", folder / "snapshots" / repository.commit
    blobs.mkdir(parents=True, exist_ok=True)
    for file in files:
        with _alone(repository, file):
            if not _is_whole(blobs / file.etag, file):
                _fetch_blob(repository, file, blobs, progress)
            _point(snapshot / file.name, blobs / file.etag)
    _move_reference(folder, repository)
    return snapshot / files[0].name


def _fetch_blob(repository: Repository, file: RemoteFile, blobs: Path, progress: Progress) -> None:
    partial = _partial(blobs, file)
    with partial.open("ab") as target:
        if target.tell() > file.size:
            target.truncate(0)
        have = os.fstat(target.fileno()).st_size
        progress.file(file, have)
        _fill(repository, file, target.fileno(), have, progress)
        os.fsync(target.fileno())
    if not _has_checksum(partial, file):
        partial.unlink()
        raise HubError(
            f"{shown(file.name)} came with another checksum than {repository.name} states, and is dropped. "
            "hint: pull it again; when it happens twice, something between changes it"
        )
    partial.chmod(0o644)
    partial.replace(blobs / file.etag)


def _fill(repository: Repository, file: RemoteFile, fd: int, have: int, progress: Progress) -> None:
    """Append what is missing; begins again in the middle when the connection breaks. Raises HubError."""
    tries = _TRIES
    while have < file.size:
        before = have
        try:
            with speaking_of(repository.name, repository.revision):
                for start, piece in pieces(repository, file.name, have):
                    if start != have:  # a server that knows no ranges begins at 0
                        os.ftruncate(fd, start)
                        progress.advance(start - have)
                        have = start
                    piece = piece[: file.size - have]
                    _write(fd, piece)
                    have += len(piece)
                    progress.advance(len(piece))
                    if have >= file.size:
                        return
            if have == before:
                raise HubError(f"{shown(file.name)} ends at {have} of {file.size} bytes", unreachable=True)
        except HubError as problem:
            tries = tries - 1 if have == before else _TRIES
            if not problem.unreachable or tries <= 0:
                raise
            time.sleep(_PAUSE_S)


def pieces(
    repository: Repository, name: str, start: int, most_bytes: int | None = None
) -> Generator[tuple[int, bytes], None, None]:
    """The bytes of a file from `start` with their places, as they come."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "accept-encoding": "identity"}
    if start or most_bytes is not None:
        headers["range"] = f"bytes={start}-" + ("" if most_bytes is None else str(start + most_bytes - 1))
    url = hf_hub_url(repository.name, name, revision=repository.commit)
    with get_session().stream("GET", url, headers=headers, timeout=_READ_S) as response:
        hf_raise_for_status(response)
        at = start if response.status_code == 206 else 0
        for piece in response.iter_bytes(_CHUNK_BYTES):
            yield at, piece
            at += len(piece)


def _write(fd: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(fd, left) :]


def _has_checksum(path: Path, file: RemoteFile) -> bool:
    """SHA-256 of a large file, git's SHA-1 of a small one, which names its size first."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as source:
        while piece := source.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest() == file.etag


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.etag}.onecard.incomplete"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_whole(blob: Path, file: RemoteFile) -> bool:
    return blob.is_file() and _size(blob) == file.size


def _point(pointer: Path, blob: Path) -> None:
    """A link of the snapshot to the content, put in one step."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, pointer.parent)
    with contextlib.suppress(OSError):
        if os.readlink(pointer) == target:  # noqa: PTH115 - as it is written
            return
    beside = pointer.with_name(f".{pointer.name[:200]}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(pointer)


def _move_reference(folder: Path, repository: Repository) -> None:
    if repository.revision == repository.commit:
        return
    ref = folder / "refs" / repository.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    beside = ref.with_name(f".{ref.name}.{os.getpid()}")
    beside.write_text(repository.commit)
    beside.replace(ref)


@contextlib.contextmanager
def _alone(repository: Repository, file: RemoteFile) -> Generator[None, None, None]:
    """One process fetches a file. The kernel frees the lock of one that dies."""
    from filelock import FileLock, Timeout

    folder = hub_cache() / ".locks" / repository_folder(repository.name).name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{file.etag}.lock", timeout=0):
            yield
    except Timeout:
        raise HubError(f"another process is fetching {shown(file.name)}. hint: wait until it is done") from None
