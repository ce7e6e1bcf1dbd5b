"""One engine of each backend on the canary model for the whole folder; every test leaves it idle.

Whatever is asked of an engine is asked of both; what is a fact of llama.cpp alone says so itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry
from backends.engine import Engine
from backends.messages import LoadModel


@pytest.fixture(scope="session", params=["gguf", "bnb"])
def canary_engine(request: pytest.FixtureRequest, canary_path: Path, canary_folder: Path) -> Iterator[Engine]:
    path = canary_path if request.param == "gguf" else canary_folder
    spec = LoadModel(name="canary", backend=request.param, path=str(path), context=512, parallel=4, threads=1)
    engine = registry.engine_of(request.param)(spec, lambda _: None)
    yield engine
    engine.close()


@pytest.fixture
def engine(canary_engine: Engine) -> Iterator[Engine]:
    yield canary_engine
    if not canary_engine.idle:  # nothing may run any more; what ended with the last step is kept with one more
        assert not canary_engine.step().n_decode
    assert canary_engine.idle
