"""A server of each backend with the demo model and a canary for the whole folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, canary_model: Path) -> Iterator[Server]:
    models = {"demo": demo_model, "canary": canary_model}
    flags = ("--parallel", "4", "--context", "2048")
    with serving(tmp_path_factory.mktemp("e2e"), models=models, flags=flags) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()
