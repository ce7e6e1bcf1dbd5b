"""A program that may mount a small file system: in a name space of its own, where anybody may."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_in_name_space(program: str, *arguments: Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """What this Python program said; skips where the machine gives users no name spaces."""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=Path.cwd())
    if "unshare" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("no name spaces for users here")
    return done
