"""The user's unit: its text, made of the system's own file, where it lies, and whether it is up to date."""

from __future__ import annotations

import os
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.cli.console import CliError, ExitCode
from server.cli.doctor.findings import Finding
from server.cli.service import systemd
from server.own_folder import user_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME: Final = "onecard.service"
MARK: Final = "# Written by `onecard service install`; `onecard service uninstall` removes it."
SYSTEM_PLACES: Final = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_BORDER: Final = "# From here to [Install]: only the system's manager can do it."
_PASSED_ON: Final = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
                     "CUDA_VISIBLE_DEVICES")  # fmt: skip
"""Variables that decide where files lie and which card is used."""


def place() -> Path:
    """Where the user's units lie."""
    return user_folder("XDG_CONFIG_HOME", "~/.config").parent / "systemd" / "user" / NAME


def ours() -> bool:
    """Whether the unit that is there was written by us."""
    try:
        return place().read_text().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False


def system_unit() -> Path | None:
    """The unit of all users, where one is installed."""
    return next((path for folder in SYSTEM_PLACES if (path := Path(folder) / NAME).exists()), None)


def text(config: Path | None, environ: Mapping[str, str]) -> str:
    """The unit's whole text. Raises CliError for what no unit can hold."""
    command = [*program(), "serve", *([] if config is None else ["--config", str(config.expanduser().absolute())])]
    kept, system = (files("server") / "onecard.service").read_text().split(_BORDER)
    install = system[system.index("[Install]") :].replace("multi-user.target", "default.target")
    kept = kept[kept.index("[Unit]") :].replace("After=network.target\n", "")
    kept = re.sub(r"^ExecStart=.*$", lambda _: f"ExecStart={' '.join(map(quoted, command))}", kept, flags=re.MULTILINE)
    passed = [
        f"Environment={quoted(f'{name}={environ[name]}', dollars=False)}" for name in _PASSED_ON if environ.get(name)
    ]
    return "\n".join([MARK, kept.strip(), *passed, "", install])


def program() -> list[str]:
    """How this very installation is started."""
    script = Path(sys.prefix) / "bin" / "onecard"
    return [str(script)] if script.exists() else [sys.executable, "-m", "server.cli"]


def quoted(word: str, *, dollars: bool = True) -> str:
    """A word as a unit has it (systemd.syntax), without specifiers and, in a command, variables. Raises CliError."""
    if any(char in word for char in "\n\r\0"):
        raise CliError(f"{word!r} cannot stand in a unit", ExitCode.USAGE)
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    escaped = escaped.replace("$", "$$") if dollars else escaped
    return escaped if re.fullmatch(r"[\w@%+=:,./-]+", escaped, re.ASCII) else f'"{escaped}"'


def lingers() -> bool:
    """Whether the user's services run without a login."""
    import pwd

    return (Path("/var/lib/systemd/linger") / pwd.getpwuid(os.getuid()).pw_name).exists()


def findings() -> list[Finding]:
    """For the doctor: whether it is installed, up to date and running."""
    unit = place()
    if not unit.exists():
        system = system_unit()
        where = "no unit is installed" if system is None else f"{system} is installed for all users"
        return [Finding("service", "ok", where)]
    if not ours():
        return [Finding("service", "note", f"{unit} was not written by `onecard service install`")]
    found = []
    start = next((line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")), "")
    if not start.startswith(f"ExecStart={' '.join(map(quoted, program()))} serve"):
        remedy = "`onecard service install` writes it anew"
        found.append(Finding("service", "warning", f"{unit} starts another installation: {start[:200]}", remedy))
    try:
        state = systemd.systemctl("show", "--property=ActiveState", "--value", NAME).strip()
    except systemd.SystemdError as problem:
        return [*found, Finding("service", "warning", str(problem).partition(" hint:")[0])]
    if state == "failed":
        remedy = "`onecard logs` says why"
        return [*found, Finding("service", "problem", f"{NAME} has failed", remedy)]
    found.append(Finding("service", "ok", f"{NAME} is {state}"))
    if not lingers():
        text = "the service ends with your last session"
        found.append(Finding("service", "note", text, "loginctl enable-linger"))
    return found
