"""A server of each backend with the demo model and a canary for the whole folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server, serving


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path, Path], Server]]:
    """A server of each backend, started when first asked for: files take turns with backends."""
    running: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:

        def server_of(backend: str, demo_model: Path, canary_model: Path) -> Server:
            if backend not in running:
                models = {"demo": demo_model, "canary": canary_model}
                flags = ("--parallel", "4", "--context", "2048")
                folder = tmp_path_factory.mktemp("e2e")
                running[backend] = stack.enter_context(serving(folder, models=models, flags=flags))
            return running[backend]

        yield server_of


@pytest.fixture(scope="session")
def server(servers: Callable[[str, Path, Path], Server], backend: str, demo_model: Path, canary_model: Path) -> Server:
    return servers(backend, demo_model, canary_model)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()
