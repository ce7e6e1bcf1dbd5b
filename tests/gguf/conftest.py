"""One engine on the canary model for the whole folder; every test leaves it idle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.engine import Engine
from backends.gguf.loading import load
from backends.messages import LoadModel


@pytest.fixture(scope="session")
def canary_engine(canary_path: Path) -> Iterator[Engine]:
    spec = LoadModel(name="canary", backend="gguf", path=str(canary_path), context=512, parallel=4, threads=1)
    engine = load(spec, lambda _: None)
    yield engine
    engine.close()


@pytest.fixture
def engine(canary_engine: Engine) -> Iterator[Engine]:
    yield canary_engine
    assert canary_engine.idle
