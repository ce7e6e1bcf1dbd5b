"""Where settings come from: flags over environment over file over defaults, and errors an operator can act on.

Every problem is a sentence that names the source, the key and a hint; the value of a secret is never shown.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from server.own_folder import user_folder
from server.settings.config import Settings
from server.settings.config_problems import nearest, owner, sentences
from server.settings.key_file import KeyFileError, read_keys
from server.settings.named_keys import check_keys, with_file
from server.settings.references import absolute

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PREFIX = "ONECARD_"
_NO_SETTINGS = frozenset(
    f"ONECARD_{name}" for name in ("URL", "API_KEY", "CONFIG", "BACKENDS", "HISTORY", "UID", "GID")
)
"""What the commands, the registry of backends and the compose file read from the environment."""
_TESTS = "ONECARD_TEST_"
_NEIGHBOUR = re.compile(r"ONECARD_(?:\w+_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT_\d+_(?:TCP|UDP)\w*)")
"""What Kubernetes sets in every container beside a service named onecard, as it sets ONECARD_PORT=tcp://..."""


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

    def origin(self, *keys: str) -> str | None:
        """The label of the source that decided a key; None for a default."""
        return _origin(self.sources, keys)


def _origin(sources: list[Source], keys: tuple[str, ...]) -> str | None:
    return next((source.label for source in sources if source.holds(keys)), None)


def default_config_file() -> Path:
    """Where the configuration lies when no `--config` says otherwise."""
    return user_folder("XDG_CONFIG_HOME", "~/.config") / "config.toml"


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
        lines = sentences(problem, lambda keys: _origin(sources, keys) or sources[-1].label)
        raise ConfigError("\n".join(lines)) from None
    settings = _with_key_file(settings)
    try:
        check_keys(settings.keys, [*settings.server.api_keys, *settings.server.admin_keys])
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    return Loaded(settings=settings, file=file, sources=sources)


def _config_file(config: Path | None) -> Path | None:
    if config is None:
        config = default_config_file()
        if not os.path.lexists(config):
            return None
    config = config.expanduser()
    if config.is_dir():
        raise ConfigError(f"{config}: this is a folder. hint: name the file in it, such as {config / 'onecard.toml'}")
    if not config.exists():
        raise ConfigError(f"{config}: there is no such file. hint: `onecard config init --output {config}` writes one")
    if not config.is_file():
        raise ConfigError(f"{config}: this is no regular file")
    return config


def _toml(file: Path) -> dict[str, Any]:
    try:
        # Editors of Windows begin a file with a byte order mark, which TOML does not know.
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{file}: this is no UTF-8 text (at byte {problem.start})") from None
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{file}: this is no TOML: {problem}") from None
    except ValueError:  # of `int`
        raise ConfigError(f"{file}: it has a number of more than {sys.get_int_max_str_digits()} digits") from None
    except RecursionError:
        raise ConfigError(f"{file}: its arrays or tables are too deep") from None
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror}") from None


def _environment() -> dict[str, Any]:
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and not _is_no_setting(name.upper(), os.environ[name]):
            _check_variable(name)
    return _Environment(_Sources)()


def _is_no_setting(name: str, value: str) -> bool:
    others = name in _NO_SETTINGS or name.startswith(_TESTS) or _NEIGHBOUR.fullmatch(name) is not None
    return others or value.startswith(("tcp://", "udp://"))


def _check_variable(name: str) -> None:
    """Refuse a variable that would set nothing. Raises ConfigError."""
    section, nested, _ = name.upper().removeprefix(PREFIX).partition("__")
    if section.lower() in Settings.model_fields:
        return
    if nested:
        raise ConfigError(f"environment: {name} names no section{nearest(section.lower(), Settings)}")
    raise ConfigError(f"environment: {name} is no setting{_nearest_variable(section)}")


def _nearest_variable(text: str) -> str:
    """`ONECARD_PORT` and `ONECARD_SERVER_PORT` mean `ONECARD_SERVER__PORT`."""
    variables = {
        f"{section}__{key}".upper(): key.upper()
        for section in Settings.model_fields
        if section != "models"
        for key in owner((section, "")).model_fields
    }
    spellings = {name.replace("__", "_"): name for name in variables}
    spellings |= {key: name for name, key in reversed(variables.items()) if key not in spellings}
    if near := difflib.get_close_matches(text, spellings, n=1, cutoff=0.6):
        return f". hint: did you mean {PREFIX}{spellings[near[0]]}?"
    return f". hint: a setting is {PREFIX}SECTION__KEY, such as {PREFIX}SERVER__PORT"


def _rebased(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """A copy whose relative paths start at the folder they were written in."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    models, server = values.get("models"), values.get("server")
    if isinstance(models, dict):
        for name, model in models.items():
            if isinstance(model, dict) and isinstance(model.get("path"), str) and model["path"]:
                models[name] = {**model, "path": absolute(model["path"], base)}
            if isinstance(model, dict) and isinstance(found := model.get("adapters"), dict):
                adapters = {
                    key: absolute(path, base) if isinstance(path, str) and path else path for key, path in found.items()
                }
                models[name] = {**models[name], "adapters": adapters}
    if isinstance(server, dict) and isinstance(server.get("models_dirs"), list):
        folders = server["models_dirs"]
        server["models_dirs"] = [str(base / Path(d).expanduser()) if isinstance(d, str) else d for d in folders]
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
        named = with_file(settings.keys, keys.named)
    except (KeyFileError, ValueError) as problem:
        told = problem if isinstance(problem, KeyFileError) else f"{server.api_key_file}: {problem}"
        raise ConfigError(f"server.api_key_file: {told}") from None
    both = {
        "api_keys": [*server.api_keys, *keys.api_keys],
        "admin_keys": [*server.admin_keys, *keys.admin_keys],
    }
    return settings.model_copy(update={"server": server.model_copy(update=both), "keys": named})
