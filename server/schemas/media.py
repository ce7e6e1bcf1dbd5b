"""Images and sounds in messages: the parts of all surfaces that hold one, decoded, checked and bounded.

Nothing is fetched: a medium comes with its request, in base64. Where no backend reads a kind of media its parts are no
parts that this server knows, and are refused as those are. What is in a medium is for its engine to find out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from backends.messages import MediaKind, Medium
from backends.registry import BACKENDS
from server.schemas.problems import problem, wrong_type

if TYPE_CHECKING:
    from collections.abc import Mapping

READ: Final[frozenset[MediaKind]] = frozenset(kind for backend in BACKENDS.values() for kind in backend.media)
"""What some model may read."""
MAX_MEDIUM_BYTES: Final = 20 * 2**20
"""Of one, decoded."""
MAX_MEDIA_BYTES: Final = 40 * 2**20
"""Of all of one request: they cross the process border in one frame."""
MAX_MEDIA: Final = 256
_PARTS: Final[Mapping[str, tuple[MediaKind, str]]] = MappingProxyType(
    {
        "image_url": ("image", "image_url"),
        "input_image": ("image", "image_url"),
        "image": ("image", "source"),
        "input_audio": ("audio", "input_audio"),
    }
)
"""Type of a part -> what it holds, and the field with it: of chat completions, responses and Anthropic's messages."""
_DATA_URL: Final = re.compile(r"data:(?P<type>[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)?(?:;[A-Za-z0-9=_.+-]+)*;base64,")
_FORMAT: Final = re.compile(r"[A-Za-z0-9.+-]{1,32}")
_DETAILS: Final = ("auto", "low", "high", "original")


def read_kind(part_type: Any) -> MediaKind | None:
    """What a part of this type holds; None where it is no medium or no model reads it."""
    kind = _PARTS[part_type][0] if isinstance(part_type, str) and part_type in _PARTS else None
    return kind if kind in READ else None


def field_of(part_type: str) -> str:
    """The field of such a part that holds the medium."""
    return _PARTS[part_type][1]


def medium_of(part_type: str, fields: Mapping[str, Any]) -> Medium:
    """The medium of a part that `read_kind` knows. Raises what validators raise."""
    kind, name = _PARTS[part_type]
    value = fields.get(name)
    if isinstance(value, Medium):  # another surface's part has been read already
        return value
    if value is None:
        raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=f".{name}")
    if name == "source":
        return _of_source(kind, value)
    if name == "input_audio":
        return _of_audio(kind, value)
    detail = fields.get("detail")
    if isinstance(value, dict):
        detail, name = value.get("detail", detail), f"{name}.url"
        value = value.get("url")
    if detail is not None and detail not in _DETAILS:
        told = "Invalid value for '{param}': expected one of {details}."
        raise problem("invalid_value", told, field=".detail", details=", ".join(_DETAILS))
    return _of_url(kind, value, name, detail or "")


def _of_url(kind: MediaKind, url: Any, name: str, detail: str) -> Medium:
    if not isinstance(url, str):
        raise wrong_type("a string", url, field=f".{name}")
    if (head := _DATA_URL.match(url)) is None:
        raise problem(
            "invalid_value",
            "Invalid '{param}': this server fetches nothing; send the {kind} itself, as a URL that begins with "
            "'data:{kind}/TYPE;base64,'.",
            field=f".{name}",
            kind=kind,
        )
    return _medium(kind, url[head.end() :], f".{name}", head["type"] or "", detail)


def _of_audio(kind: MediaKind, value: Any) -> Medium:
    if not isinstance(value, dict):
        raise wrong_type("an object", value, field=".input_audio")
    said = value.get("format")
    if not isinstance(said, str) or not _FORMAT.fullmatch(said):
        raise problem(
            "invalid_value", "Invalid '{param}': expected a format such as wav or mp3.", field=".input_audio.format"
        )
    return _medium(kind, value.get("data"), ".input_audio.data", f"audio/{said}")


def _of_source(kind: MediaKind, value: Any) -> Medium:
    if not isinstance(value, dict):
        raise wrong_type("an object", value, field=".source")
    if value.get("type") != "base64":
        raise problem(
            "invalid_value",
            "Invalid '{param}': this server fetches nothing and keeps no files; send a source of type 'base64'.",
            field=".source.type",
        )
    said = value.get("media_type")
    return _medium(kind, value.get("data"), ".source.data", said if isinstance(said, str) else "")


def _medium(kind: MediaKind, text: Any, where: str, media_type: str, detail: str = "") -> Medium:
    if not isinstance(text, str):
        raise wrong_type("a string", text, field=where)
    media_type = media_type.lower()
    if media_type and not media_type.startswith(f"{kind}/"):
        told = "Invalid '{param}': expected {kind}, got {media_type}."
        raise problem("invalid_value", told, field=where, kind=f"{kind}/...", media_type=media_type[:64])
    if len(text) * 3 // 4 > MAX_MEDIUM_BYTES + 3:
        told = "Invalid '{param}': too large. Expected at most {limit} bytes."
        raise problem("string_above_max_length", told, field=where, limit=MAX_MEDIUM_BYTES)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise problem("invalid_value", "Invalid '{param}': it is not valid base64.", field=where) from None
    if not data:
        raise problem("invalid_value", "Invalid '{param}': it is empty.", field=where)
    return Medium(kind, data, hashlib.sha256(data).hexdigest(), media_type, detail)
