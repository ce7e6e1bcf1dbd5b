"""Which files a run begins with are files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import selection

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", selection.LONGEST)
def test_what_is_begun_first_is_there_and_once(file: str) -> None:
    assert (ROOT / file).is_file()
    assert selection.LONGEST.count(file) == 1
    assert selection.place(file) < selection.place("tests/test_selection.py")
