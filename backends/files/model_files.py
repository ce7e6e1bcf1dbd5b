"""The one way to open a file of a model: regular files only, never waiting for a writer, never more bytes than allowed.

Files of a model come from strangers: a name may be a link to a device that never ends, a pipe without a writer, or
a file whose size is a lie. `tests/test_layering.py` holds that no other way is used. Libraries that open files by their
path get a folder only after `check_folder`. It blocks on the disk: the server calls it on threads for that alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

BESIDE_WEIGHTS: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "chat_template.json",
    "preprocessor_config.json",
)
"""Of a Hugging Face folder: what another folder with other weights of the same model takes over byte for byte."""
CONFIG_BYTES: Final = 4 * 2**20
"""Of a configuration; the largest that is known has 0.1 MiB."""
TOKENIZER_CONFIG_BYTES: Final = 16 * 2**20
"""tokenizer_config.json lists every added token; the largest that is known has 1.2 MiB."""
INDEX_BYTES: Final = 32 * 2**20
VOCABULARY_BYTES: Final = 128 * 2**20
TEMPLATE_BYTES: Final = 2**20
MOST_ENTRIES: Final = 10_000
"""Of a folder."""
_MOST_DEPTH: Final = 2
_CHUNK_BYTES: Final = 2**20
_FILLED_BYTES: Final = 2**26
_VOCABULARIES: Final = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
_TEXTS: Final = frozenset({"vocab.txt", "merges.txt"})
_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_LIMITS: Final[Mapping[str, int]] = {
    "tokenizer_config.json": TOKENIZER_CONFIG_BYTES,
    "added_tokens.json": TOKENIZER_CONFIG_BYTES,
    "special_tokens_map.json": TOKENIZER_CONFIG_BYTES,
}
_BY_SUFFIX: Final[Mapping[str, int]] = {
    ".json": CONFIG_BYTES,
    ".jinja": TEMPLATE_BYTES,
    ".model": VOCABULARY_BYTES,
    ".txt": VOCABULARY_BYTES,
    ".spm": VOCABULARY_BYTES,
    ".tiktoken": VOCABULARY_BYTES,
}
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class FileError(Exception):
    """A file that cannot be read as what it should be; a sentence with its name and without its folder."""


class MissingError(FileError):
    """There is no such file."""


@dataclass(frozen=True)
class ModelFile:
    """A regular file, open for reading; `size` is what the kernel says, and no read depends on it being true."""

    fd: int
    name: str
    size: int
    status: os.stat_result

    def read(self, most_bytes: int) -> bytes:
        """All of it. Raises FileError where that is more than `most_bytes`."""
        if self.size > most_bytes:
            raise FileError(_too_large(self.name, self.size, most_bytes))
        raw = self.at(0, most_bytes + 1)
        if len(raw) > most_bytes:
            raise FileError(_too_large(self.name, None, most_bytes))
        return raw

    def at(self, offset: int, n_bytes: int) -> bytes:
        """At most so many bytes from there; fewer where the file ends. Raises FileError."""
        parts, done = [], 0
        while done < n_bytes:
            part = self._pread(min(_CHUNK_BYTES, n_bytes - done), offset + done)
            if not part:
                break
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def fill(self, buffer: memoryview, offset: int) -> None:
        """All of a buffer of bytes with what is there, without a copy. Raises FileError where the file ends before."""
        done = 0
        while done < len(buffer):
            try:
                n = os.preadv(self.fd, [buffer[done : done + _FILLED_BYTES]], offset + done)
            except (OSError, OverflowError) as error:
                raise FileError(f"{shown(self.name)} cannot be read: {reason(error)}") from None
            if n == 0:
                raise FileError(f"{shown(self.name)} was cut while it was read. hint: try it again")
            done += n

    def _pread(self, n_bytes: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, n_bytes, offset)
        except (OSError, OverflowError) as error:
            raise FileError(f"{shown(self.name)} cannot be read: {reason(error)}") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ModelFile]:
    """The file, once it is known to be a regular one. Raises MissingError or FileError."""
    name = path.name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        if (dangling := _dangling(path)) is not None:
            raise FileError(f"{shown(name)} {dangling}") from None
        raise MissingError(f"the file {shown(name)} does not exist") from None
    except (OSError, ValueError) as error:
        told = _kind_at(path) or f"cannot be opened: {reason(error)}"
        raise FileError(f"{shown(name)} {told}") from None
    try:
        status = os.fstat(fd)
        if (strange := _strange(status)) is not None:
            raise FileError(f"{shown(name)} {strange}")
        yield ModelFile(fd, name, status.st_size, status)
    finally:
        os.close(fd)


def check(path: Path) -> os.stat_result:
    """See that a library may open the file by its path. Raises MissingError or FileError."""
    with opened(path) as file:
        return file.status


def statuses_of(files: Iterable[Path]) -> list[tuple[int, int, int]]:
    """Size, time of change and inode of those that are there: where one differs, so may what is in it."""
    found: list[os.stat_result] = []
    for file in files:
        with contextlib.suppress(OSError):
            found.append(file.stat())
    return [(status.st_size, status.st_mtime_ns, status.st_ino) for status in found]


def why_not_file(path: Path) -> str | None:
    """Why a name leads to no regular file, as a clause with its verb; None where it does or leads nowhere."""
    try:
        return _strange(os.stat(path))  # noqa: PTH116 - the target decides
    except FileNotFoundError:
        return _dangling(path)
    except (OSError, ValueError) as error:
        return f"cannot be opened: {reason(error)}"


def _dangling(path: Path) -> str | None:
    try:
        target = os.readlink(path)  # noqa: PTH115 - as it is written
    except (OSError, ValueError):
        return None
    return f"is a link to {shown(Path(target).name)}, which is not there. hint: was it downloaded completely?"


def is_there(path: Path) -> bool:
    """Whether the name leads to something; False too for names that none can have."""
    return os.path.exists(path)  # noqa: PTH110 - pathlib raises for a name that is too long


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file of at most so many bytes. Raises MissingError or FileError."""
    with opened(path) as file:
        return file.read(most_bytes)


def read_text(path: Path, most_bytes: int) -> str:
    """A whole file as UTF-8. Raises MissingError or FileError."""
    try:
        return read_bytes(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{shown(path.name)} is no UTF-8 text: byte {error.start} is none") from None


def read_json(path: Path, most_bytes: int = CONFIG_BYTES) -> Any:
    """A whole file as JSON. Raises MissingError or FileError."""
    return parsed(read_bytes(path, most_bytes), path.name)


def read_object(path: Path, most_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """A whole file as a JSON object. Raises MissingError or FileError."""
    document = read_json(path, most_bytes)
    if not isinstance(document, dict):
        raise FileError(f"{shown(path.name)} is not a JSON object")
    return document


def parsed(raw: bytes, name: str) -> Any:
    """JSON from a model's file. Raises FileError."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise FileError(f"{shown(name)} is nested deeper than any model's file is") from None
    except ValueError:
        told = "is empty" if not raw.strip(b"\0 \t\r\n") else "is not JSON"
        raise FileError(f"{shown(name)} {told}. hint: was it downloaded completely?") from None


def check_folder(folder: Path) -> None:
    """See that libraries may open whatever a model folder holds. Raises FileError for the first thing that is wrong."""
    left = MOST_ENTRIES
    for path, status in _inside(folder, folder, depth=_MOST_DEPTH):
        left -= 1
        if left < 0:
            raise FileError(f"the folder holds more than {MOST_ENTRIES} files. hint: a model has a folder of its own")
        name = str(path.relative_to(folder))
        if (strange := _strange(status)) is not None:
            raise FileError(f"{shown(name)} {strange}. hint: a model folder holds files and folders only")
        limit = limit_of(path.name)
        if limit is not None and status.st_size > limit:
            raise FileError(_too_large(name, status.st_size, limit))
        if limit is not None and (path.suffix in (".json", ".jinja") or path.name in _TEXTS):
            _check_encoding(path, name, limit)


def _check_encoding(path: Path, name: str, limit: int) -> None:
    """The libraries read UTF-8 and nothing else; Python's json would read more."""
    raw = read_bytes(path, limit)
    if raw.startswith(_MARKS):
        raise FileError(
            f"{shown(name)} begins with a byte order mark, which transformers does not read. "
            "hint: save it as UTF-8 without one"
        )
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{shown(name)} is no UTF-8 text: byte {error.start} is none. hint: save it as UTF-8") from None
    if b"\0" in raw:
        raise FileError(f"{shown(name)} is no UTF-8 text: it holds zero bytes. hint: save it as UTF-8")


def limit_of(name: str) -> int | None:
    """The most bytes that a file of this name may have; None for weights and for what no library reads."""
    if name in _VOCABULARIES:
        return VOCABULARY_BYTES
    if name.endswith(".index.json"):
        return INDEX_BYTES
    return _LIMITS.get(name, _BY_SUFFIX.get(Path(name).suffix.lower()))


def reason(error: BaseException) -> str:
    """What the system says of an error, in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno, os.strerror(error.errno).lower())
    return "its name or size is none that a file can have"


def shown(name: str) -> str:
    """A file's name as a sentence can hold it: one line, printable, not too long."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= _NAME_CHARS else f"{printable[:_NAME_CHARS]}..."


_NAME_CHARS: Final = 80
_WORDS: Final[Mapping[int, str]] = {
    errno.EACCES: "this server may not read it. hint: chmod or chown it",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "its name is longer than a file's can be",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system has lost it",
    errno.ENXIO: "it is a pipe or a device and no file",
    errno.ENODEV: "it is a device and no file",
    errno.EMFILE: "this server has too many files open",
}


def _inside(top: Path, folder: Path, *, depth: int) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything in a folder that a name leads to, hidden files and links to nowhere left out."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MOST_ENTRIES + 1), strict=False)]
    except OSError as error:
        raise FileError(f"the folder {shown(folder.name)} cannot be read: {reason(error)}") from None
    for name in sorted(names):
        if name.startswith("."):
            continue
        path = folder / name
        try:
            status = os.stat(path)  # noqa: PTH116 - the target decides
        except OSError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield path, status
        elif depth > 1:
            yield from _inside(top, path, depth=depth - 1)


def _strange(status: os.stat_result) -> str | None:
    """What a file is that is none to read; None for a regular one."""
    if stat.S_ISREG(status.st_mode):
        return "is not a regular file but one of the kernel's" if status.st_dev in _system_devices() else None
    kind = next((words for test, words in _KINDS if test(status.st_mode)), "something else")
    return f"is not a regular file but {kind}"


def _system_devices() -> set[int]:
    """File systems whose regular files are none: reading them may wait, or never end."""
    found = set()
    for place in ("/proc", "/sys"):
        with contextlib.suppress(OSError):
            found.add(os.stat(place).st_dev)  # noqa: PTH116
    return found


def _kind_at(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return _strange(os.stat(path))  # noqa: PTH116
    return None


def _too_large(name: str, size: int | None, limit: int) -> str:
    has = "more" if size is None else f"{size} bytes"
    return f"{shown(name)} has {has}, and {limit} are the most that such a file may have"
