"""What an installation that stops says: one sentence and one hint, with the line that installs what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from installer.machine import Machine

_PACKAGES = {
    "apt": {"g++": "g++", "venv": "python{python}-venv", "driver": "nvidia-driver", "toolkit": "nvidia-cuda-toolkit"},
    "dnf": {"g++": "gcc-c++", "venv": "python3-pip", "driver": "akmod-nvidia", "toolkit": "cuda-toolkit"},
    "zypper": {"g++": "gcc-c++", "venv": "python3-pip", "driver": "nvidia-open-driver-G06", "toolkit": "cuda-toolkit"},
    "pacman": {"g++": "gcc", "venv": "python", "driver": "nvidia", "toolkit": "cuda"},
}
_VERBS = {"apt": "apt install", "dnf": "dnf install", "zypper": "zypper install", "pacman": "pacman -S"}


class InstallError(Exception):
    """Why the installation stopped: a sentence, and behind `hint:` what to do about it."""


def system_install(machine: Machine, what: str, *, version: int | None = None) -> str:
    """The command that installs g++, venv, driver or toolkit on this machine, such as `sudo apt install g++`."""
    manager = machine.manager or "apt"
    package = _PACKAGES[manager][what].format(python=".".join(map(str, machine.python)))
    if version is not None and manager == "apt":
        package += f"-{version}"
    return f"{'sudo ' if machine.sudo else ''}{_VERBS[manager]} {package}"


def size(n_bytes: int) -> str:
    """`1.5 GiB`, `300 MiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
