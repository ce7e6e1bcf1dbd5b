"""The types of the configuration's values: how each may be written, and its bounds.

All sizes are in bytes, all times in seconds.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from backends.kv_types import PATTERN, kv_types_of
from backends.messages import KvType, SpeculationMode
from backends.options import NO_BOOL, comma_list
from server.settings.durations import LONGEST_S, keep_alive_of, seconds_of
from server.settings.sizes import Size

MAX_NAME_CHARS = 200
SPECULATION_WORDS = (*get_args(SpeculationMode), "mtp")


def _key_is_sendable(key: str) -> str:
    if not key or not all("!" <= char <= "~" for char in key):
        raise ValueError("a key is one or more printable ASCII characters without spaces")
    return key


_HOST_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")


def _host_pattern(text: str) -> str:
    """A name or address as it stands in a Host header without its port; `*.` in front means every name below it."""
    host = text.strip().lower().strip("[]").removesuffix(".")
    if _HOST_PATTERN.fullmatch(host) is None or ".." in host:
        raise ValueError("a host looks like llm.home.lan, without scheme and port; '*.home.lan' is every name below it")
    return host


def _holds_a_model(n_bytes: int) -> int:
    if n_bytes < 2**20:
        like = f"{n_bytes}GiB" if 0 < n_bytes < 1000 else "600MiB"
        raise ValueError(f"a size with its unit, such as {like}: {n_bytes} bytes hold no model")
    return n_bytes


def check_name(name: str) -> str:
    """A model's name or alias: 1..200 printable characters, `/` and `:` among them. Raises ValueError."""
    if not name or len(name) > MAX_NAME_CHARS or name != name.strip():
        raise ValueError(f"a model name has 1 to {MAX_NAME_CHARS} characters and no space at its ends")
    if not name.isprintable():
        raise ValueError("a model name holds printable characters only")
    return name


def _speculation(word: str) -> str:
    """How tokens are drafted, or `model:NAME` with the name of the model that does."""
    kind, colon, name = word.partition(":")
    if word in SPECULATION_WORDS or (kind == "model" and colon and check_name(name)):
        return word
    kinds = ", ".join(f"'{mode}'" for mode in SPECULATION_WORDS)
    raise ValueError(
        f"'{word[:80]}' is no way to draft tokens. hint: it is {kinds}, or 'model:NAME' with a model's name"
    )


def _origin(text: str) -> str:
    """An origin as browsers send it, which is never with a path, capitals or the scheme's own port."""
    if text in ("localhost", "*", "null"):
        return text
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError(
            "an origin looks like https://app.example.com or http://192.168.1.2:3000, without a path; "
            "'localhost' is every page of this machine, '*' every page"
        )
    scheme, host, port = match["scheme"].lower(), match["host"].lower(), match["port"] or ""
    return f"{scheme}://{host}" + ("" if port == _OWN_PORTS.get(scheme) else port)


def _forever_or_seconds(value: float) -> float:
    if value < 0 and value != -1:
        raise ValueError("a keep-alive is a number of seconds, '1h30m', 0 for at once or -1 for never")
    return value


_ORIGIN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?P<port>:[0-9]{1,5})?/?"
)
_OWN_PORTS = {"http": ":80", "https": ":443"}
_YEAR_S = 86400 * 365
_DURATION = BeforeValidator(seconds_of, json_schema_input_type=float | str)
Seconds = Annotated[float, Field(ge=0, le=_YEAR_S, allow_inf_nan=False), NO_BOOL, _DURATION]
PositiveSeconds = Annotated[float, Field(gt=0, le=_YEAR_S, allow_inf_nan=False), NO_BOOL, _DURATION]
KeepAlive = Annotated[
    float,
    Field(le=LONGEST_S, allow_inf_nan=False),
    AfterValidator(_forever_or_seconds),
    NO_BOOL,
    BeforeValidator(keep_alive_of, json_schema_input_type=float | str),
]
ModelName = Annotated[str, AfterValidator(check_name)]
Budget = Literal["auto"] | Annotated[Size, AfterValidator(_holds_a_model)]
Context = Literal["auto"] | Annotated[int, Field(ge=8, le=2**31 - 1), NO_BOOL]
GpuLayers = Literal["auto"] | Annotated[int, Field(ge=0, le=10_000), NO_BOOL]
KvTypeWord = Annotated[
    str,
    AfterValidator(kv_types_of),
    WithJsonSchema({"anyOf": [{"enum": [*get_args(KvType)]}, {"type": "string", "pattern": PATTERN}]}),
]
SpeculationWord = Annotated[
    str,
    AfterValidator(_speculation),
    WithJsonSchema({"anyOf": [{"enum": [*SPECULATION_WORDS]}, {"type": "string", "pattern": "^model:.+$"}]}),
]
KvTokens = Literal["auto"] | Annotated[int, Field(ge=8, le=2**31 - 1), NO_BOOL]
ItlMs = Literal["auto"] | Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False), NO_BOOL]
Parallel = Annotated[int, Field(ge=1, le=256), NO_BOOL]
MAX_SYSTEM_CHARS = 100_000
SystemText = Annotated[str, Field(max_length=MAX_SYSTEM_CHARS)]
KeyText = Annotated[str, AfterValidator(_key_is_sendable)]
Keys = Annotated[list[KeyText], BeforeValidator(comma_list)]
Hosts = Annotated[list[Annotated[str, AfterValidator(_host_pattern)]], BeforeValidator(comma_list)]
Origins = Annotated[list[Annotated[str, AfterValidator(_origin)]], BeforeValidator(comma_list)]


class Section(BaseModel):
    """Base of every table: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)
