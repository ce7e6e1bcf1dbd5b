"""Where settings come from: flags over environment over file over defaults, and errors an operator can act on.

Every problem is a sentence that names the source, the key and a hint; the value of a secret is never shown.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from server.config import ModelConfig, Settings
from server.key_file import KeyFileError, read_keys
from server.references import absolute

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

PREFIX = "ONECARD_"
_NOT_YET = {
    "quantization": "the bnb backend is not in this version",
}
"""Keys that are read and checked, but change nothing in this version; using one gives a warning."""


class ConfigError(Exception):
    """The configuration cannot be used; the text has one sentence per line."""


class _Sources(BaseSettings, Settings):
    """The settings' shape, as pydantic-settings wants it to read its sources."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True)


class _Environment(EnvSettingsSource):
    """Environment variables; what is no JSON stays text, so that lists may be written `a,b`."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


@dataclass(frozen=True)
class Source:
    """One place values come from, and the values it gave."""

    label: str
    """`flag`, `environment`, or the file's path."""
    values: dict[str, Any]

    def holds(self, keys: tuple[str, ...]) -> bool:
        """Whether this source gave a value for a dotted key."""
        node: Any = self.values
        for key in keys:
            if not isinstance(node, dict) or key not in node:
                return False
            node = node[key]
        return True


@dataclass(frozen=True)
class Loaded:
    """The settings, the file they were read from (None: there is none) and what gave each value."""

    settings: Settings
    file: Path | None
    sources: list[Source] = field(repr=False)
    warnings: list[str]

    def origin(self, *keys: str) -> str | None:
        """The label of the source that decided a key; None for a default."""
        return next((source.label for source in self.sources if source.holds(keys)), None)


def default_config_file() -> Path:
    """Where the configuration lies when no `--config` says otherwise."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "onecard" / "config.toml"


def load_settings(config: Path | None = None, *, flags: dict[str, Any] | None = None) -> Loaded:
    """Settings of flags, environment and file. Raises ConfigError."""
    file = _config_file(config)
    sources = [
        Source("flag", _rebased(flags or {}, Path.cwd())),
        Source("environment", _rebased(_environment(), Path.cwd())),
    ]
    if file is not None:
        sources.append(Source(str(file), _rebased(_toml(file), file.absolute().parent)))
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged = _merged(merged, source.values)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as problem:
        raise ConfigError("\n".join(_sentences(problem, sources))) from None
    loaded = Loaded(settings=_with_key_file(settings), file=file, sources=sources, warnings=[])
    loaded.warnings.extend(_warnings(loaded))
    return loaded


def _config_file(config: Path | None) -> Path | None:
    if config is None:
        default = default_config_file()
        return default if default.is_file() else None
    config = config.expanduser()
    if not config.is_file():
        raise ConfigError(f"{config}: there is no such file. hint: `onecard config init --output {config}` writes one")
    return config


def _toml(file: Path) -> dict[str, Any]:
    try:
        return TomlConfigSettingsSource(_Sources, toml_file=file).toml_data
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{file}: this is no TOML: {problem}") from None
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror}") from None


def _environment() -> dict[str, Any]:
    for name in sorted(os.environ):
        section, nested, _ = name.upper().removeprefix(PREFIX).partition("__")
        if name.upper().startswith(PREFIX) and nested and section.lower() not in Settings.model_fields:
            raise ConfigError(f"environment: {name} names no section{_nearest(section.lower(), Settings)}")
    return _Environment(_Sources)()


def _rebased(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """A copy whose relative paths start at the folder they were written in."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    models, server = values.get("models"), values.get("server")
    if isinstance(models, dict):
        for name, model in models.items():
            if isinstance(model, dict) and isinstance(model.get("path"), str) and model["path"]:
                models[name] = {**model, "path": absolute(model["path"], base)}
    if isinstance(server, dict) and isinstance(server.get("api_key_file"), str):
        server["api_key_file"] = str(base / Path(server["api_key_file"]).expanduser())
    return values


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(low[key], high[key])
        for key in high
        if isinstance(low.get(key), dict) and isinstance(high[key], dict)
    }
    return {**low, **high, **both}


def _with_key_file(settings: Settings) -> Settings:
    server = settings.server
    if server.api_key_file is None:
        return settings
    try:
        keys = read_keys(Path(server.api_key_file))
    except KeyFileError as problem:
        raise ConfigError(f"server.api_key_file: {problem}") from None
    return settings.model_copy(update={"server": server.model_copy(update={"api_keys": [*server.api_keys, *keys]})})


def _sentences(problem: ValidationError, sources: list[Source]) -> list[str]:
    """One line per key that is wrong."""
    by_key: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in problem.errors(include_url=False, include_context=False):
        by_key.setdefault(_key_of(detail["loc"]), []).append(detail)
    return [_sentence(keys, details, sources) for keys, details in by_key.items()]


def _key_of(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The part of a location that is a key of the file: the rest tells alternatives of a union or places in a list."""
    depth = 3 if loc and loc[0] == "models" else 2
    return tuple(str(part) for part in loc[:depth])


def _sentence(keys: tuple[str, ...], details: list[ErrorDetails], sources: list[Source]) -> str:
    label = next((source.label for source in sources if source.holds(keys)), sources[-1].label)
    where = f"flag {_flag(keys)}" if label == "flag" else f"{label}: {'.'.join(keys)}"
    first = details[0]
    if first["type"] == "extra_forbidden":
        what = "section" if len(keys) == 1 else "key"
        return f"{where} is an unknown {what}{_nearest(keys[-1], _owner(keys))}"
    if first["type"] == "missing":
        return f"{where} is missing"
    reasons = [detail["msg"].removeprefix("Value error, ").removeprefix("Input ") for detail in details]
    is_secret = keys[:2] == ("server", "api_keys")
    shown = "" if is_secret or isinstance(first["input"], dict) else f" = {str(first['input'])[:80]!r}"
    return f"{where}{shown}: {' or '.join(dict.fromkeys(reasons))}"


def _flag(keys: tuple[str, ...]) -> str:
    names = {"api_keys": "api-key", "models": "model"}
    last = keys[0] if keys[0] == "models" else keys[-1]
    return "--" + names.get(last, last.replace("_", "-"))


def _owner(keys: tuple[str, ...]) -> type[BaseModel]:
    """The class whose fields a key had to be one of."""
    if len(keys) == 1:
        return Settings
    if keys[0] == "models":
        return ModelConfig
    section = Settings.model_fields[keys[0]].annotation
    return section if isinstance(section, type) and issubclass(section, BaseModel) else Settings


def _nearest(key: str, owner: type[BaseModel]) -> str:
    known = [name for name in owner.model_fields if not (owner is ModelConfig and name == "name")]
    if near := difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5):
        return f". hint: did you mean '{near[0]}'?"
    return f". hint: there are {', '.join(known)}"


def _warnings(loaded: Loaded) -> list[str]:
    found = []
    for dotted, effect in _NOT_YET.items():
        places = (
            [tuple(dotted.split("."))]
            if "." in dotted
            else [("models", name, dotted) for name in loaded.settings.models]
        )
        found += [
            f"{loaded.origin(*keys)}: {'.'.join(keys)} has no effect in this version: {effect}"
            for keys in places
            if loaded.origin(*keys) is not None
        ]
    return found
