"""One server with the demo model and a canary for the whole folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, canary_path: Path) -> Iterator[Server]:
    models = {"demo": "demo", "canary": canary_path}
    flags = ("--parallel", "4", "--context", "2048")
    with serving(tmp_path_factory.mktemp("e2e"), models=models, flags=flags) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()
