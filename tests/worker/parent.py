"""A process of Python that a test kills."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping


def started(code: str, argument: str, *, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """It, with a pipe to its output. None of asyncio's: what is left of its transport ends in another test's loop."""
    return subprocess.Popen([sys.executable, "-c", code, argument], stdout=subprocess.PIPE, env=env)
