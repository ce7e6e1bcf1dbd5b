"""Requests with files: `multipart/form-data`, read as it arrives, its files into the spool, its fields bounded.

Owns the format and its tricks. Who may send one, and how large it may be, was decided at the gate before a byte of it
was read; what the fields mean is the route's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.door.access import header_values
from server.errors import ApiError, clip, missing_parameter, unsupported_parameter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from backends.kinds import Limits
    from backends.messages import SpoolFile
    from server.door.spool import Spool, SpoolWriter

FIELDS_BYTES: Final = 2**20
"""Of all fields of a form that are no files, with their names."""
MAX_FIELDS: Final = 64
OVERHEAD_BYTES: Final = FIELDS_BYTES + 64 * 1024
"""What a form may hold beside its files."""
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PLAIN: Final = (b"binary", b"8bit", b"7bit")
_NAME_CHARS: Final = 200
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass
class Form:
    """What was sent; the files are there until the `async with` of `receive` ends."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, SpoolFile] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """A field that stands once; None where it is not there. Raises ApiError 400."""
        given = self.fields.get(name, [])
        if len(given) > 1:
            raise ApiError(400, f"The field '{name}' is there {len(given)} times.", param=name, code="invalid_value")
        return given[0] if given else None

    def file(self, name: str) -> SpoolFile:
        """A file that has to be there. Raises ApiError 400."""
        if name in self.fields:
            told = f"Invalid '{name}': expected a file, got a field without a file name."
            raise ApiError(400, told, param=name, code="invalid_value")
        if name not in self.files:
            raise missing_parameter(name)
        return self.files[name]


def is_form(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request says that its body is a form with files."""
    types = header_values(headers, b"content-type")
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == b"multipart/form-data"


@contextlib.asynccontextmanager
async def receive(request: Request, spool: Spool, limits: Limits) -> AsyncIterator[Form]:
    """The form of a request, whole. Its files are removed at the end, however that comes about. Raises ApiError."""
    if not is_form(request.scope["headers"]):
        told = "A file is sent as a form: the body must be multipart/form-data."
        raise ApiError(415, told)
    reader, body = _Reader(_boundary(request), spool, limits), request.stream()
    try:
        try:
            await reader.read(body)
        except ApiError:
            async for _ in body:  # as far as the gate allows: a client that still sends reads no answer
                pass
            raise
        yield reader.form
    finally:
        for writer in reader.writers:
            writer.remove()


def _boundary(request: Request) -> bytes:
    """Raises ApiError 400."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise _broken("its boundary is missing or none that a form can have")
    return boundary


def _broken(why: str) -> ApiError:
    return ApiError(400, f"The body is not valid multipart/form-data: {why}.", code="invalid_form")


@dataclass
class _Part:
    """The part that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    data: bytearray = field(default_factory=bytearray)
    writer: SpoolWriter | None = None
    media_type: str = ""
    file_name: str = ""


class _Reader:
    def __init__(self, boundary: bytes, spool: Spool, limits: Limits) -> None:
        self.form = Form()
        self.writers: list[SpoolWriter] = []
        self._spool = spool
        self._limits = limits
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._n_fields = self._n_field_bytes = 0
        self._file_names: set[str] = set()
        self._unwritten: list[tuple[_Part, bytes]] = []
        self._finished: list[_Part] = []
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._header_done,
                "on_headers_finished": self._headers_done,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._end_of_form,
            },
        )

    async def read(self, body: AsyncIterator[bytes]) -> None:
        """All of it; files are written on a thread, and no faster than the disk takes them. Raises ApiError."""
        try:
            async for data in body:
                self._parser.write(data)
                for part, piece in self._unwritten:
                    assert part.writer is not None
                    await asyncio.to_thread(part.writer.write, piece)
                self._unwritten.clear()
                for part in self._finished:
                    assert part.writer is not None
                    self.form.files[part.name] = part.writer.finish(media_type=part.media_type, name=part.file_name)
                self._finished.clear()
        except FormParserError:
            raise _broken("a boundary or a header is malformed") from None
        if not self._ended:
            raise _broken("it ends before its last boundary")
        for name, file in self.form.files.items():
            if file.n_bytes == 0:
                raise ApiError(400, f"Invalid '{name}': the file is empty.", param=name, code="invalid_value")

    def _begin(self) -> None:
        self._part = _Part()

    def _header_done(self) -> None:
        name, value = (bytes(part) for part in self._header)
        for part in self._header:
            part.clear()
        if name.lower() in self._part.headers:
            raise _broken("a part has the same header twice")
        self._part.headers[name.lower()] = value

    def _headers_done(self) -> None:
        part = self._part
        disposition, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or not options.get(b"name"):
            raise _broken("a part has no name")
        if part.headers.get(b"content-transfer-encoding", b"binary").lower() not in _PLAIN:
            raise _broken("a part is encoded; send its bytes as they are")
        part.name = _text(options[b"name"], what="the name of a part")
        if b"filename" in options or b"filename*" in options:
            self._begin_file(options.get(b"filename", b""))
        else:
            self._n_fields += 1
            self._count(len(options[b"name"]))
            if self._n_fields > MAX_FIELDS:
                raise _broken(f"it has more than {MAX_FIELDS} fields")

    def _begin_file(self, file_name: bytes) -> None:
        part, limits = self._part, self._limits
        if part.name not in limits.files:
            raise unsupported_parameter(clip(part.name), "takes no file here.")
        if part.name in self._file_names:
            told = f"Invalid '{part.name}': expected one file, got several."
            raise ApiError(400, told, param=part.name, code="invalid_value")
        media = part.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        said = media not in ("", "application/octet-stream")
        if said and limits.media and not any(fnmatch.fnmatchcase(media, pattern) for pattern in limits.media):
            told = f"Invalid '{part.name}': {clip(media)} is none of {', '.join(limits.media)}."
            raise ApiError(400, told, param=part.name, code="unsupported_media")
        name = file_name.decode("utf-8", "replace")
        if _CONTROL.search(name):  # lists of files are read in terminals, too
            told = f"Invalid '{part.name}': the name of the file has a control character."
            raise ApiError(400, told, param=part.name, code="invalid_value")
        self._file_names.add(part.name)
        part.media_type = media if said else ""
        part.file_name = name.replace("\\", "/").rpartition("/")[2][:_NAME_CHARS]
        part.writer = self._spool.begin()
        self.writers.append(part.writer)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.writer is None:
            self._count(end - start)
            part.data += data[start:end]
            return
        if part.writer.n_bytes + end - start > self._limits.file_bytes:
            told = f"The file '{part.name}' is larger than the limit of {self._limits.file_bytes} bytes."
            raise ApiError(413, told, param=part.name, code="request_too_large")
        part.writer.take(end - start)
        self._unwritten.append((part, data[start:end]))

    def _count(self, n_bytes: int) -> None:
        self._n_field_bytes += n_bytes
        if self._n_field_bytes > FIELDS_BYTES:
            raise ApiError(
                413, f"The fields of the form are larger than {FIELDS_BYTES} bytes.", code="request_too_large"
            )

    def _end(self) -> None:
        part = self._part
        if part.writer is None:
            self.form.fields.setdefault(part.name, []).append(_text(bytes(part.data), what=f"'{clip(part.name)}'"))
            return
        self._finished.append(part)

    def _end_of_form(self) -> None:
        self._ended = True


def _text(data: bytes, *, what: str) -> str:
    """Raises ApiError 400."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _broken(f"{what} is not UTF-8") from None
