"""One engine of each backend on the canary model for the whole folder; every test leaves it idle.

Whatever is asked of an engine is asked of both; what is a fact of llama.cpp alone says so itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry
from backends.engine import Engine
from tests.specs import spec_of


@pytest.fixture(scope="session")
def canary_engines() -> Iterator[dict[str, Engine]]:
    """The engines by backend, each loaded when first asked for: files take turns with backends."""
    engines: dict[str, Engine] = {}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="session")
def canary_engine(canary_engines: dict[str, Engine], backend: str, canary_model: Path) -> Engine:
    if backend not in canary_engines:
        spec = spec_of(name="canary", backend=backend, path=str(canary_model), context=512, parallel=4, threads=1)
        canary_engines[backend] = registry.engine_of(backend)(spec, lambda _: None)
    return canary_engines[backend]


@pytest.fixture
def engine(canary_engine: Engine) -> Iterator[Engine]:
    yield canary_engine
    if not canary_engine.idle:  # nothing may run any more; what ended with the last step is kept with one more
        assert not canary_engine.step().n_decode
    assert canary_engine.idle
