"""Files of other programs, written with a backup and put back byte for byte. A record of each is kept until then."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.cli.connect.edits import EditError, edited, fresh, replaced
from server.cli.console import CliError
from server.cli.output import sentence
from server.own_folder import user_folder

if TYPE_CHECKING:
    from server.cli.connect.recipe import File

_BACKUP: Final = ".before-onecard"
_MOST_BYTES: Final = 8 * 2**20


@dataclass(frozen=True)
class Written:
    """What was done to a file, as it is kept until it is undone."""

    path: str
    """The file itself, behind symbolic links."""
    after: str
    """SHA-256 of what was written."""
    backup: str | None
    """Where the bytes from before are; None where there was no file."""
    made: tuple[str, ...] = ()
    """Folders that were made for it, outermost first."""


@dataclass(frozen=True)
class Plan:
    """A file as it is, and as it is to be."""

    path: Path
    before: bytes | None
    after: bytes
    earlier: Written | None
    """What an earlier call has done, where nothing has changed the file since."""
    replaces: tuple[str, ...]
    """Keys whose values change."""


def plan(client: str, file: File) -> Plan:
    """What writing would do. Raises CliError."""
    path = _target(file.path)
    now = _bytes(path)
    earlier = next((one for one in _record(client) if one.path == str(path) and now and one.after == _sha(now)), None)
    first = _bytes(Path(earlier.backup)) if earlier is not None and earlier.backup is not None else None
    if earlier is not None and earlier.backup is not None and first is None:
        earlier = None  # the backup was removed: what is there now is all there is
    before = now if earlier is None else first
    try:
        text = None if before is None else before.decode()
        after = fresh(file.format, file.changes) if text is None else edited(file.format, text, file.changes)
        replaces = [] if text is None else replaced(file.format, text, file.changes)
    except UnicodeDecodeError:
        raise _untouched(file.path, "it is no UTF-8 text") from None
    except EditError as problem:
        raise _untouched(file.path, str(problem)) from None
    return Plan(path, now, after.encode(), earlier, tuple(replaces))


def write(client: str, plans: list[Plan]) -> list[Written]:
    """Write them all, or none. Raises CliError."""
    done: list[Written] = []
    before = _record(client)
    records = [one for one in before if one.path not in {str(each.path) for each in plans}]
    try:
        for each in plans:
            done.append(_write(each))
            _keep(client, [*records, *done])
    except OSError as problem:
        for each, one in zip(plans, done, strict=False):
            _take_back(each, one)
        _keep(client, before)
        raise CliError(f"{sentence(problem)}. Nothing was changed") from None
    return done


def undo(client: str) -> list[Written]:
    """Put every file back that was written for the client. Raises CliError, and then nothing is changed."""
    records = _record(client)
    if not records:
        raise CliError(f"nothing was written for {client}, so there is nothing to undo")
    for one in records:
        now = _bytes(Path(one.path))
        if now is None or _sha(now) != one.after:
            kept = f"What was there before is in {one.backup}" if one.backup else "Before there was no such file"
            raise CliError(
                f"{one.path} was changed since it was written, so it is left as it is. {kept}. "
                "hint: take out by hand what `onecard connect` shows"
            )
        if one.backup is not None and _bytes(Path(one.backup)) is None:
            raise CliError(f"{one.backup} is gone, without which {one.path} cannot be put back")
    try:
        for place, one in enumerate(records):
            _put_back(one)
            _keep(client, records[place + 1 :])
    except OSError as problem:
        raise CliError(sentence(problem)) from None
    return records


def _write(each: Plan) -> Written:
    """Raises OSError."""
    made: list[str] = []
    for folder in reversed([folder for folder in each.path.parents if not folder.exists()]):
        folder.mkdir(mode=0o700)
        made.append(str(folder))
    if each.earlier is not None:
        backup, made = each.earlier.backup, [*each.earlier.made]
    else:
        backup = None
        if each.before is not None:
            backup = str(_free(each.path.with_name(each.path.name + _BACKUP)))
            _replace(Path(backup), each.before, like=each.path)
    try:
        _replace(each.path, each.after, like=each.path)
    except OSError:
        if each.earlier is None and backup is not None:
            Path(backup).unlink(missing_ok=True)
        _remove_folders(made)
        raise
    return Written(str(each.path), _sha(each.after), backup, tuple(made))


def _put_back(one: Written) -> None:
    """Raises OSError."""
    path = Path(one.path)
    if one.backup is not None:
        backup = Path(one.backup)
        _replace(path, backup.read_bytes(), like=path)
        backup.unlink()
        return
    path.unlink(missing_ok=True)
    _remove_folders(one.made)


def _take_back(each: Plan, one: Written) -> None:
    """One of several writes, of which a later one has failed. Raises OSError."""
    if each.before is None:
        each.path.unlink(missing_ok=True)
        _remove_folders(one.made)
        return
    _replace(each.path, each.before, like=each.path)
    if each.earlier is None and one.backup is not None:
        Path(one.backup).unlink()


def _remove_folders(made: list[str] | tuple[str, ...]) -> None:
    with contextlib.suppress(OSError):  # others have put something there
        for folder in reversed(made):
            Path(folder).rmdir()


def _replace(path: Path, content: bytes, *, like: Path) -> None:
    """All or nothing, with the rights and the owner that `like` has; for the user alone where it is new."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if like.exists():
            there = like.stat()
            Path(name).chmod(stat.S_IMODE(there.st_mode))
            if (there.st_uid, there.st_gid) != (os.getuid(), os.getgid()):
                with contextlib.suppress(PermissionError):
                    os.chown(name, there.st_uid, there.st_gid)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _target(path: Path) -> Path:
    """The file behind symbolic links, where it may be written. Raises CliError."""
    try:
        real = path.resolve()
        there = real.stat() if real.exists() else None
    except (OSError, RuntimeError):
        raise _untouched(path, "its links lead nowhere") from None
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise _untouched(path, "it is no regular file")
    if there is not None and (not there.st_mode & 0o222 or not os.access(real, os.W_OK)):
        raise _untouched(path, "it is read-only")
    if there is not None and there.st_size > _MOST_BYTES:
        raise _untouched(path, f"it has {there.st_size} bytes, which is no configuration")
    return real


def _untouched(path: Path, why: str) -> CliError:
    return CliError(f"{path}: {why}. It was not changed. hint: mend it, or copy what is shown without --write")


def _free(path: Path) -> Path:
    """A name that is not taken."""
    number = 1
    free = path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise CliError(sentence(problem)) from None


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _record_file(client: str) -> Path:
    return user_folder("XDG_DATA_HOME", "~/.local/share") / "connect" / f"{client}.json"


def _record(client: str) -> list[Written]:
    content = _bytes(_record_file(client))
    try:
        listed = json.loads(content) if content else []
        return [Written(one["path"], one["after"], one["backup"], tuple(one["made"])) for one in listed]
    except (ValueError, TypeError, KeyError):
        raise CliError(f"{_record_file(client)} is broken. hint: remove it; backups end in {_BACKUP}") from None


def _keep(client: str, records: list[Written]) -> None:
    """Raises OSError."""
    file = _record_file(client)
    if not records:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _replace(file, json.dumps([asdict(one) for one in records], indent=2).encode(), like=file)
