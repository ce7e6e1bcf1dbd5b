"""What is wrong with a configuration, in words: the source, the key as it is written, the value and a hint.

Owns the sentences; which source gave what is told by `server.settings.config_source`. No secret's value is shown.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from server.settings.config import ModelConfig, Settings
from server.settings.named_keys import KeyConfig
from server.settings.sampling_table import SamplingTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic_core import ErrorDetails

_LEADS = re.compile(r"^(should be|expected|a size looks like) ")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN_REASONS = {
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "list_type": "should be a list",
    "string_type": "should be a text in quotes",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
}
"""For messages of the library that speak of Python."""


def sentences(problem: ValidationError, label_of: Callable[[tuple[str, ...]], str]) -> list[str]:
    """One line per key that is wrong; `label_of` names the source that decided a key."""
    by_key: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in problem.errors(include_url=False, include_context=False):
        by_key.setdefault(_key_of(detail["loc"]), []).append(detail)
    return [_sentence(keys, details, label_of(keys)) for keys, details in by_key.items()]


def _key_of(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The part of a location that is a key of the file: the rest tells alternatives of a union or places in a list."""
    depth = 2 if not loc or loc[0] not in ("models", "keys") else 4 if len(loc) > 3 and loc[2] == "sampling" else 3
    return tuple(str(part) for part in loc[:depth] if part != "[key]")


def _dotted(keys: tuple[str, ...]) -> str:
    """A key as TOML writes it."""
    return ".".join(key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False) for key in keys)


def _sentence(keys: tuple[str, ...], details: list[ErrorDetails], label: str) -> str:
    where = f"flag {_flag(keys)}" if label == "flag" else f"{label}: {_dotted(keys)}"
    first = details[0]
    if first["type"] == "extra_forbidden":
        what = "section" if len(keys) == 1 else "key"
        return f"{where} is an unknown {what}{nearest(keys[-1], owner(keys))}"
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["input"] == "" and first["loc"] == keys:
        return f"{where} is empty"
    is_key = "[key]" in first["loc"]
    is_secret = keys[:2] in (("server", "api_keys"), ("server", "admin_keys")) or keys[0] == "keys"
    shown = "" if is_secret or is_key or isinstance(first["input"], dict) else f" = {_shown(first['input'])}"
    return f"{where}{shown}: {_either(dict.fromkeys(_reason(detail, keys) for detail in details))}"


def _either(reasons: Iterable[str]) -> str:
    """`should be 'auto' or a number`."""
    first, *others = reasons
    return " or ".join([first, *(_LEADS.sub("", other) for other in others)])


def _reason(detail: ErrorDetails, keys: tuple[str, ...]) -> str:
    if detail["type"] in ("model_type", "dict_type"):
        return f"should be a table, [{_dotted(keys)}]" + (
            " with path = ..." if keys[0] == "models" and len(keys) > 1 else ""
        )
    plain = _PLAIN_REASONS.get(detail["type"])
    return plain or detail["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _shown(value: object) -> str:
    """A value as TOML writes it, and not too much of it."""
    if isinstance(value, str):
        return repr(value[:80])
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flag(keys: tuple[str, ...]) -> str:
    names = {
        "api_keys": "api-key",
        "admin_keys": "admin-key",
        "allowed_hosts": "allowed-host",
        "models": "model",
        "format": "log-format",
    }
    last = keys[0] if keys[0] == "models" else keys[-1]
    return "--" + names.get(last, last.replace("_", "-"))


def owner(keys: tuple[str, ...]) -> type[BaseModel]:
    """The class whose fields a key had to be one of."""
    if len(keys) == 1:
        return Settings
    if keys[0] == "models":
        return SamplingTable if len(keys) > 3 else ModelConfig
    if keys[0] == "keys":
        return KeyConfig
    section = Settings.model_fields[keys[0]].annotation
    return section if isinstance(section, type) and issubclass(section, BaseModel) else Settings


def nearest(key: str, table: type[BaseModel]) -> str:
    """A hint at the field that was meant, or at all there are."""
    known = [name for name in table.model_fields if not (table is ModelConfig and name == "name")]
    if near := difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5):
        return f". hint: did you mean '{near[0]}'?"
    return f". hint: there are {', '.join(known)}"
