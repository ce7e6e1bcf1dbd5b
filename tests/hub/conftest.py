"""The command line beside a hub on loopback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from demo import GGUF_PATH
from server.cli.app import command
from server.cli.console import CliError, complain
from tests.cli.conftest import Onecard, clean_environment, environment, onecard  # noqa: F401 - fixtures
from tests.hub.loopback import Hub, hub

CHAT = Path(GGUF_PATH).read_bytes()
FOLDER = {file.name: file.read_bytes() for file in (Path(GGUF_PATH).parent / "hf").iterdir()}
WORLD = {
    "org/chat": {
        "chat-F16.gguf": CHAT,
        "chat-Q8_0.gguf": CHAT[: len(CHAT) // 2],
        "README.md": b"# chat",
    },
    "org/seer": {"seer-F16.gguf": CHAT, "mmproj-seer-F16.gguf": b"GGUF" * 50},
    "org/folder": {**FOLDER, "README.md": b"# folder", "pytorch_model.bin": b"x", "run.py": b"x"},
    "org/lora": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    "org/secret": {"a.gguf": b"x"},
    "org/away": {"../../../../away.gguf": CHAT},
    "org/loud": {"\x1b[31mred-Q4_0.gguf": CHAT},
}


@pytest.fixture
def world() -> Iterator[Hub]:
    with hub(WORLD) as running:
        running.gated.add("org/secret")
        yield running


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def pulled(
    environment: dict[str, str],  # noqa: F811
    world: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    """A command that asks the hub on loopback, in this process: starting Python takes longer than most of them."""
    # read when the library is imported, perhaps after an engine has told it to ask no hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in {**environment, "HF_ENDPOINT": world.url, "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", world.url)  # which the library reads as it is imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", world.url + template[template.index("/{repo_id}") :])
    monkeypatch.chdir(tmp_path)

    def _run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> Done:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO(stdin))
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            try:
                command().main(list(arguments), standalone_mode=False)
                code = 0
            except CliError as problem:
                complain(problem.message)
                code = problem.code
        told = capsys.readouterr()
        return Done(int(code), told.out, told.err)

    return _run


@pytest.fixture
def start(environment: dict[str, str], world: Hub, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:  # noqa: F811
    """The same, not waited for."""

    def _start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            env={**environment, "HF_ENDPOINT": world.url},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return _start
