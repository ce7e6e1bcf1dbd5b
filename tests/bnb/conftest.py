"""Folders to load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import demo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model's folder, to be damaged."""
    return Path(shutil.copytree(demo.HF_PATH, tmp_path / "model"))
