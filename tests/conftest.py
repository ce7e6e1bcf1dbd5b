"""Fixtures that more than one room of the suite uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import canary_p


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What servers learn in tests is kept away from the user's own, and forgotten with them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def canary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CANARY-P as a Hugging Face folder."""
    return canary_p.build_folder(tmp_path_factory.mktemp("canary-hf"))


@pytest.fixture(scope="session")
def canary_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CANARY-P as a GGUF file."""
    return canary_p.build(tmp_path_factory.mktemp("canary") / "canary-p.gguf")
