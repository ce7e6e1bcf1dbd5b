"""`[keys.NAME]`: keys with a name and limits of their own; and what of them cannot be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field

from backends.options import NO_BOOL, comma_list
from server.accounts.account import RESERVED, KeyLimits
from server.settings.values import KeyText, ModelName, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def _key_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError("a key's name has 1 to 64 letters, digits and . _ @ -")
    if name in RESERVED:
        raise ValueError(f"'{name}' is what keys without a name are called: choose another one")
    return name


KeyName = Annotated[str, AfterValidator(_key_name)]
_PerMinute = Annotated[int, Field(ge=1, le=10**9), NO_BOOL]


class KeyConfig(Section):
    """`[keys.NAME]`: a key of its own name, for one person or program."""

    key: Annotated[KeyText | None, Field(repr=False)] = None
    """The key itself; without it a line `NAME KEY` of `api_key_file` has it."""
    admin: bool = False
    """It may also do what `admin_keys` may."""
    models: Annotated[list[ModelName], BeforeValidator(comma_list)] = []
    """Models that it may use: names, aliases, or patterns such as `qwen-*`; `chat:pirate` is one adapter. None: all."""
    requests_per_minute: _PerMinute | None = None
    """More get 429, with `x-ratelimit-*` headers and `retry-after`."""
    tokens_per_minute: _PerMinute | None = None
    """Tokens of prompts and answers together. A request begins as long as some are left, and costs what it takes."""
    max_concurrent: Annotated[int, Field(ge=1, le=100_000), NO_BOOL] | None = None
    """Requests that may run or wait at once, streams among them."""
    priority: Annotated[int, Field(ge=-1000, le=1000), NO_BOOL] = 0
    """Added to the priority of its requests."""

    @property
    def limits(self) -> KeyLimits:
        """What the door holds it to."""
        return KeyLimits(
            models=tuple(self.models),
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            max_concurrent=self.max_concurrent,
            priority=self.priority,
        )


def with_file(keys: Mapping[str, KeyConfig], named: Mapping[str, str]) -> dict[str, KeyConfig]:
    """The tables with the keys that a key file has for them. Raises ValueError with a sentence."""
    for name in named:
        if name not in keys:
            raise ValueError(
                f"it has a key for '{name}', and there is no [keys.{name}]. hint: a line is KEY, admin KEY or NAME KEY"
            )
        if keys[name].key is not None:
            raise ValueError(f"it has a key for '{name}', and [keys.{name}] has one too. hint: keep one of them")
    return {name: key if key.key else key.model_copy(update={"key": named.get(name)}) for name, key in keys.items()}


def check_keys(keys: Mapping[str, KeyConfig], unnamed: Iterable[str]) -> None:
    """Every table has a key, and no two have the same. Raises ValueError with a sentence that shows no key."""
    owner = dict.fromkeys(unnamed, "api_keys or admin_keys in [server]")
    for name, key in keys.items():
        if key.key is None:
            raise ValueError(f"keys.{name} has no key. hint: key = \"...\", or a line '{name} KEY' in api_key_file")
        if key.key in owner:
            raise ValueError(f"keys.{name} has the same key as {owner[key.key]}. hint: give each its own")
        owner[key.key] = f"keys.{name}"
