"""The toy that sees, as each backend reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.vision import folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face folder, made of the two GGUF files."""
    path = tmp_path_factory.mktemp("demo-vision") / "hf"
    folder.write(path)
    return path


@pytest.fixture(scope="session")
def vision_model(backend: str, request: pytest.FixtureRequest) -> Path | str:
    """What a server is told to serve."""
    found: Path | str = "demo-vision" if backend == "gguf" else request.getfixturevalue("vision_folder")
    return found
