"""A load that takes several times its estimate is stopped by its own limit, and is told apart from a lack of memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def in_a_child(body: str) -> str:
    """What a process of its own says: the limit is one of the whole process."""
    code = "from backends.border.load_limit import OverLimitError, limited\nfrom backends.engine import LoadError\n"
    done = subprocess.run(
        [sys.executable, "-c", code + textwrap.dedent(body)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()


def test_what_goes_beyond_the_limit_is_its_own_fault() -> None:
    said = in_a_child("""
        try:
            with limited(64 << 20):
                [i for i in range(10**9)]
        except OverLimitError:
            print("over", len(bytearray(1 << 30)) >> 30)
    """)
    assert said == "over 1"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("LoadError('no memory', out_of_memory=True)", "OverLimitError"),
        ("LoadError('CUDA out of memory', out_of_memory=True)", "LoadError"),
        ("LoadError('no model')", "LoadError"),
        ("ValueError('x')", "ValueError"),
    ],
)
def test_only_a_shortage_is_taken_for_the_limit(error: str, name: str) -> None:
    assert name == in_a_child(f"""
        try:
            with limited(64 << 20):
                raise {error}
        except Exception as error:
            print(type(error).__name__)
    """)


def test_without_a_limit_there_is_none() -> None:
    assert in_a_child("with limited(0):\n    print(len(bytearray(1 << 28)) >> 28)") == "1"
