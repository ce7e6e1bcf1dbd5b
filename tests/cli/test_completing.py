"""The shell's completion: names of models from the configuration and from a server, and names of clients."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import FAKE
from tests.e2e.server import serving

CONFIG = "[models.chat]\npath = 'demo'\naliases = ['gpt-4o', 'cheap']\n[models.coder]\npath = 'demo'\n"


@pytest.fixture
def complete(environment: dict[str, str]):
    def _complete(*words: str, cwd: str | None = None, **env: str) -> list[str]:
        asked = {"_ONECARD_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        code = "import sys; sys.argv = ['onecard']; from server.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, **asked, **env},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return _complete


@pytest.mark.parametrize(
    ("text", "begun", "names"),
    [
        (CONFIG, "c", ["chat", "cheap", "coder"]),
        (CONFIG, "gpt", ["gpt-4o"]),
        (CONFIG, "de", ["demo", "demo-draw", "demo-vision"]),
        ("broken [", "d", ["demo", "demo-draw", "demo-vision"]),
        ("models = 3", "d", ["demo", "demo-draw", "demo-vision"]),
        ("[models]\na = 1\n[server]\nport = 'x'\napi_keys = 7\n", "a", ["a"]),
        (None, "d", ["demo", "demo-draw", "demo-vision"]),
    ],
)
def test_names_of_the_configuration(text, begun, names, tmp_path, monkeypatch):
    from typer import Context
    from typer.main import get_command

    from server.cli.app import app
    from server.cli.completing import model_names

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ONECARD_URL", raising=False)
    if text is not None:
        (tmp_path / "c.toml").write_text(text)
    context = Context(get_command(app))
    context.params = {"config": tmp_path / "c.toml", "url": "http://127.0.0.1:9"}
    assert sorted(model_names(context, begun)) == names
    context.params = {"config": tmp_path / "c.toml"}
    assert set(names) <= set(model_names(context, begun))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("onecard run llama", ["llama3:8b", "llama3:70b"]),
        ("onecard run llama3 :", ["8b", "70b"]),
        ("onecard run llama3 : 7", ["70b"]),
        ("onecard run org/a:b : Q", ["Q4"]),
        ("onecard run my", ["my\\ model"]),
        ("onecard show --config = o.toml --url = http : //127.0.0.1 : 1 llama3 : 8", ["8b"]),
        ("onecard connect --model = a : b co", ["codex", "continue"]),
    ],
)
def test_bash_parts_words_at_colons_and_is_given_what_it_replaces(complete, words, found, tmp_path):
    """As `COMP_WORDS` has them: bash replaces the last one alone, and takes it as it is."""
    names = ("llama3:8b", "llama3:70b", "org/a:b:Q4", "my model")
    text = "".join(f"[models.'{name}']\npath = 'demo'\n" for name in names)
    for file in (tmp_path / "config" / "onecard" / "config.toml", tmp_path / "o.toml"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert complete(*words.split(" "), cwd=str(tmp_path)) == found


def test_a_shell_gets_them_from_the_server_that_runs(complete, tmp_path):
    with serving(tmp_path, models={"demonstration": "demo"}, env=FAKE) as server:
        assert complete("onecard", "load", "demon", ONECARD_URL=server.url) == ["demonstration"]


def test_a_shell_gets_clients(complete):
    assert complete("onecard", "connect", "co") == ["codex", "continue"]


def test_no_library_of_ours_is_imported_for_it():
    code = (
        "import sys; from server.cli.completing import model_names; "
        "print([n for n in ('pydantic', 'httpx2', 'fastapi', 'backends') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
