"""Flags as the nested values the configuration takes; a flag that was not given leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.cli.console import CliError, ExitCode
from server.settings.builtin import BUILT_IN
from server.settings.references import parse_hub_reference


class Flags:
    """Values by section."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def put(self, section: str, **given: object) -> None:
        """Keep the flags that were given."""
        present = {key: value for key, value in given.items() if value not in (None, [])}
        if present:
            self.values.setdefault(section, {}).update(present)


def model_flags(texts: list[str]) -> dict[str, dict[str, str]]:
    """`NAME=PATH` (or a path alone, named after its file) as model tables. Raises CliError."""
    models: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = name_for(text), text
        if not name or not path:
            raise CliError(f"--model {text!r}: write NAME=PATH", ExitCode.USAGE)
        if name in models:
            raise CliError(f"--model names '{name}' twice", ExitCode.USAGE)
        models[name] = {"path": path}
    return models


def name_for(path: str) -> str:
    """The name a model gets that was given by its path alone."""
    if path in BUILT_IN:
        return path
    if not Path(path).expanduser().exists() and (reference := parse_hub_reference(path)):
        return reference.repo + (f":{reference.quant}" if reference.quant else "")
    name = Path(path).expanduser().absolute().name.replace("=", "-")
    return name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
