"""Fixtures that more than one room of the suite uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import canary_p


@pytest.fixture(scope="session")
def canary_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CANARY-P as a GGUF file."""
    return canary_p.build(tmp_path_factory.mktemp("canary") / "canary-p.gguf")
