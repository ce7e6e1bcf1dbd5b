"""The list of exceptions holds nothing that is not there, and what it lists is left out with its reason."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import BACKENDS
from tests.exceptions import EXCEPTIONS

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_listed_is_skipped_on_that_backend_and_runs_on_the_other() -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=", "--setup-plan", *EXCEPTIONS]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False).stdout

    for test, left_out in EXCEPTIONS.items():
        skipped = re.findall(rf"^{re.escape(test)}\[(\w+)\b.*SKIPPED", planned, re.MULTILINE)
        asked = re.findall(rf"^{re.escape(test)}\[(\w+)\b", planned, re.MULTILINE)
        assert set(asked) == set(BACKENDS), planned
        assert set(skipped) == set(left_out) < set(BACKENDS), planned
