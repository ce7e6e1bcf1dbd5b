"""The real command line in child processes; answers come from the fake engine unless a test says otherwise."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.settings.builtin import SERVED, built_in_path
from tests import warm
from tests.e2e.server import Server, serving

INSTALLED = [name for name in SERVED if built_in_path(name) is not None]
"""What is served where no model is named."""
FAKE = {"ONECARD_TEST_ENGINE": "tests.fakes.engine:load"}
ROOT = Path(__file__).resolve().parents[2]
Onecard = Callable[..., "subprocess.CompletedProcess[str]"]


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's environment without anything of ours, and with no configuration and no cache."""
    ours = ("ONECARD_", "HF_", "TRANSFORMERS_")  # an engine in this process sets the last two
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    places = {
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "PYTHONPATH": str(ROOT),
    }
    return {**kept, **places, **FAKE}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment(tmp_path)


@pytest.fixture
def onecard(environment: dict[str, str], tmp_path: Path) -> Onecard:
    """Run one command to its end."""

    def _run(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None):
        return warm.run("server.cli", arguments, input=stdin, env={**environment, **(env or {})}, cwd=tmp_path)

    return _run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), models={"demo": "demo"}, env=FAKE) as running:
        yield running
