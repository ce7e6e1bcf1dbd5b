"""`onecard config`: write an example, check, print the schema, show what is in effect."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from server.cli.checkup import broken, without_engine
from server.cli.client import client_for
from server.cli.console import CliError, ExitCode, say, write, write_json
from server.reload import Reading
from server.settings.catalog import Catalog
from server.settings.config import Settings
from server.settings.config_source import ConfigError, Loaded, default_config_file, load_settings
from server.settings.discovery import discover, with_discovered
from server.settings.listener import open_listener
from server.settings.named_models import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = "(hidden)"


def loaded_or_exit(config: Path | None, *, flags: dict[str, Any] | None = None) -> Loaded:
    """The settings; exit code 2 with the sentences when they are wrong."""
    try:
        return load_settings(config, flags=flags)
    except ConfigError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None


def with_folders(settings: Settings) -> Reading:
    """The settings with the models of `models_dirs`. Blocks on the disk."""
    if not settings.server.models_dirs:
        return Reading(settings)
    found = discover(settings.server.models_dirs)
    return Reading(with_discovered(settings, found), found.notes)


def refuse_open_listener(settings: Settings) -> None:
    """Exit code 2 where anyone on the network could use the server. A loopback address needs no key."""
    if (why := open_listener(settings)) is not None:
        raise CliError(why, ExitCode.USAGE)


def write_example(output: Path | None, *, force: bool) -> None:
    """`config init`."""
    target = output or default_config_file()
    if target.exists() and not force:
        raise CliError(f"{target} is there already. hint: --force replaces it, --output FILE writes elsewhere")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((files("server") / "onecard.example.toml").read_text())
    except OSError as problem:
        raise CliError(f"{target} cannot be written: {problem.strerror}") from None
    how = "reads it" if output is None else f"reads it with --config {target}"
    say(f"wrote {target}. `onecard serve` {how}")


def check(config: Path | None, *, as_json: bool) -> None:
    """`config check`: settings, keys and the header of every model's file; exit code 2 with all that is wrong."""
    try:
        loaded, catalog = _checked(config)
    except CliError as problem:
        if as_json:
            write_json({"file": None, "models": [], "warnings": [], "errors": problem.message.splitlines()})
        raise
    warnings = [f"model '{name}': {why}" for name, why in without_engine(catalog.entries).items()]
    warnings += catalog.unknown_names
    if as_json:
        models = [entry.name for entry in catalog.entries]
        file = str(loaded.file) if loaded.file else None
        write_json({"file": file, "models": models, "warnings": warnings, "errors": []})
        return
    for warning in warnings:
        say(f"warning: {warning}")
    where = loaded.file or f"no file at {default_config_file()}, so defaults"
    write(f"ok: {where}, models: {', '.join(entry.name for entry in catalog.entries)}")


def _checked(config: Path | None) -> tuple[Loaded, Catalog]:
    """Raises CliError with all that is wrong, a line each."""
    loaded = loaded_or_exit(config)
    refuse_open_listener(loaded.settings)
    try:
        catalog = Catalog(with_folders(loaded.settings).settings)
    except CatalogError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    elsewhere = loaded.settings.server.models_dirs  # what others keep there is no fault of the configuration
    written = [entry for entry in catalog.entries if not elsewhere or entry.name in loaded.settings.models]
    if found := broken(written):
        raise CliError("\n".join(f"model '{name}': {why}" for name, why in found.items()), ExitCode.USAGE)
    return loaded, catalog


def reload(url: str | None, config: Path | None, *, as_json: bool) -> None:
    """`config reload`: the running server reads its own configuration again."""
    client = client_for(url, loaded_or_exit(config).settings)
    told = client.post("/v1/config/reload", {})
    if as_json:
        write_json(told)
        return
    for name, why in told["missing"].items():
        say(f"warning: model '{name}': {why}")
    for note in told["notes"]:
        say(f"note: {note}")
    lines = _told(told)
    write("\n".join(lines) if lines else "nothing has changed")


def _told(told: dict[str, Any]) -> list[str]:
    """A line for each thing that a reload has changed."""
    when = dict.fromkeys(told["reloading"], " (loaded anew once its requests have ended)")
    lines = [f"added {name}" for name in told["added"]]
    lines += [f"changed {name}: {', '.join(keys)}{when.get(name, '')}" for name, keys in told["changed"].items()]
    lines += [f"removed {name}" for name in told["removed"]]
    lines += [f"changed {key}" for key in told["settings"]]
    return lines + [f"{key} holds from the next start on" for key in told["restart"]]


def show_schema() -> None:
    """`config schema`."""
    write_json(Settings.model_json_schema())


def show(config: Path | None, *, as_json: bool) -> None:
    """`config show`."""
    loaded = loaded_or_exit(config)
    values = _visible(loaded.settings)
    if as_json:
        write_json(values)
        return
    write(f"# {loaded.file or f'no file at {default_config_file()}'}")
    for section, table in values.items():
        if section in ("keys", "models"):
            for name, its in table.items():
                write(_table(f"{section}.{_toml(name)}", its, loaded, (section, name)))
        else:
            write(_table(section, table, loaded, (section,)))


def _visible(settings: Settings) -> dict[str, Any]:
    """The settings as plain data without keys."""
    values = settings.model_dump(mode="json")
    for name in ("api_keys", "admin_keys"):
        values["server"][name] = [HIDDEN] * len(values["server"][name])
    for key in values["keys"].values():
        key["key"] = HIDDEN
    for model in values["models"].values():
        del model["name"]
    return values


def _table(title: str, table: dict[str, Any], loaded: Loaded, keys: tuple[str, ...]) -> str:
    lines = [f"\n[{title}]"]
    for key, value in table.items():
        origin = loaded.origin(*keys, key)
        comment = "" if origin is None else f"  # {'file' if origin == str(loaded.file) else origin}"
        lines.append(f"{key} = {_toml(value)}{comment}" if value is not None else f"# {key} is not set")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and flat lists are TOML's too.
    return json.dumps(value, ensure_ascii=False)
