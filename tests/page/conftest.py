"""One browser for the folder, and a server whose models have hostile names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.conftest import Server, keyed, server, settings
from tests.page.browser import Tab, browsing

__all__ = ["keyed", "server"]

HOSTILE = "<img src=x onerror=window.hit=1>"


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="session")
def hostile(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    chosen = settings(canary_path)
    chosen["models"] = {HOSTILE: chosen["models"]["fake"] | {"aliases": []}}
    running = Server(chosen, tmp_path_factory.mktemp("page") / "server.log")
    yield running
    assert running.stop() == 0, running.log
