"""The one place that calls systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from server.cli.console import CliError

_PATIENCE_S: Final = 60
"""A stop waits for the drain."""


class SystemdError(Exception):
    """systemd refused, or is not there; the message is a sentence with what to do."""


def there() -> bool:
    """Whether systemd's commands are installed."""
    return shutil.which("systemctl") is not None


def systemctl(*arguments: str) -> str:
    """What `systemctl --user` prints. Raises SystemdError."""
    command = ["systemctl", "--user", "--no-pager", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except FileNotFoundError:
        raise SystemdError("systemd is not installed here. hint: run `onecard serve` by what starts services") from None
    except subprocess.TimeoutExpired:
        raise SystemdError(f"`{' '.join(command)}` took longer than {_PATIENCE_S} s") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        if "bus" in said.lower():
            hint = f"log in as this user, not by su or sudo; or export XDG_RUNTIME_DIR=/run/user/{os.getuid()}"
            raise SystemdError(f"the user's systemd cannot be reached: {said}. hint: {hint}")
        raise SystemdError(f"`{' '.join(command)}` failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def journal(arguments: list[str]) -> None:
    """Become `journalctl`, which pages, follows and ends by itself. Raises CliError."""
    program = shutil.which("journalctl")
    if program is None:
        raise CliError("journalctl is not installed here. hint: `onecard serve` writes its log to where it was started")
    os.execv(program, ["journalctl", *arguments])  # noqa: S606 - no shell is wanted
