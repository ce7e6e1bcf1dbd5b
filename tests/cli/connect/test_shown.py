"""What `onecard connect` shows is right for every client and any name."""

from __future__ import annotations

import ast
import json
import shlex
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from server.cli.connect.clients import CLIENTS
from server.cli.connect.facts import Connection, Model
from server.cli.connect.recipe import File

ROOT = Path(__file__).resolve().parents[3]
CHAT = Model("chat", 65536)
CODER = Model("coder", 16384, ("completion", "chat", "tools", "infill"))
EXAMPLE = Connection("http://127.0.0.1:8080", (CHAT, CODER), CHAT)
HOSTILE = (
    "a b",
    "it's $HOME",
    '"; rm -rf ~; echo "',
    "$(touch x)`touch y`",
    "back\\slash\\n",
    "# no: comment",
    "- yes",
    "true",
    "1e3",
    "модель 模型 🦙",
    "org/model:Q4_K_M",
    "a' + 'b",
    "</script>{{x}}${y}",
    "null",
    "a: b",
    "[x]",
    "*anchor &ref",
    "%d %s",
    "~",
    "!tag",
    "key = 'v' # x",
)


def plain(kind: str, text: str) -> object:
    """As a library of its own reads it."""
    if kind == "toml":
        return tomllib.loads(text)
    return YAML(typ="safe", pure=True).load(text) if kind == "yaml" else json.loads(text)


def holds(value: object, wanted: str) -> bool:
    """Whether a text is, or ends, a key or a value somewhere in plain data."""
    if isinstance(value, dict):
        return any(holds(one, wanted) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return any(holds(one, wanted) for one in value)
    return isinstance(value, str) and (value == wanted or value.endswith(f"/{wanted}"))


@pytest.mark.parametrize("client", CLIENTS)
def test_the_page_shows_what_the_command_prints(client, home):
    page = (ROOT / "docs/clients.md").read_text()
    for piece in CLIENTS[client].recipe(EXAMPLE).pieces:
        assert f"```{piece.language}\n{piece.text}\n```" in page
        assert piece.title in page or piece.title[0].upper() + piece.title[1:] in page


@pytest.mark.parametrize(
    ("client", "seeing", "blind"),
    [
        ("zed", '"images": true', '"images": false'),
        ("vscode", '"vision": true', '"vision": false'),
        ("continue", "image_input", "tool_use"),
        ("opencode", '"attachment": true', '"tool_call": true'),
        ("cline", "Supports Images: on", "Supports Images: off"),
    ],
)
def test_clients_are_told_which_models_see(client, seeing, blind, home):
    for words, can, told in ((("vision",), True, seeing), ((), False, blind)):
        model = Model("m", 65536, ("completion", "chat", "tools", *words))
        pieces = CLIENTS[client].recipe(Connection(EXAMPLE.base, (model,), model)).pieces
        shown = "\n".join(piece.text for piece in pieces)
        assert (seeing in shown, told in shown) == (can, True)


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("client", CLIENTS)
def test_any_name_of_a_model_is_that_name_to_the_client(client, keyed, home):
    for name in HOSTILE:
        model = Model(name, 32768, ("completion", "chat", "tools", "infill"))
        to = Connection("http://[::1]:8080", (model, CHAT), model, keyed=keyed)
        recipe = CLIENTS[client].recipe(to)
        found = []
        for piece in recipe.pieces:
            if isinstance(piece, File):
                found.append(holds(plain(piece.format, piece.text), name))
            elif piece.language == "sh":
                words = " ".join(shlex.split(piece.text, comments=True))
                found.append(name in words or json.dumps(name, ensure_ascii=False) in words)
            elif piece.language == "python":
                constants = [node.value for node in ast.walk(ast.parse(piece.text)) if isinstance(node, ast.Constant)]
                found.append(name in constants)
            else:
                found.append(name in piece.text or json.dumps(name, ensure_ascii=False) in piece.text)
        assert any(found) or client == "openwebui", name


@pytest.mark.parametrize("client", CLIENTS)
def test_only_the_variable_stands_for_a_key(client, home):
    shown = "\n".join(piece.text for piece in CLIENTS[client].recipe(EXAMPLE).pieces)
    keyed = Connection(EXAMPLE.base, EXAMPLE.models, CHAT, keyed=True)
    recipe = CLIENTS[client].recipe(keyed)
    told = "\n".join([*(piece.text for piece in recipe.pieces), *recipe.notes])
    assert "ONECARD_API_KEY" in told or "key" in told
    assert "none" not in told.replace("none (any", "").split(), "a key that the server would refuse"
    assert client == "openwebui" or "ONECARD_API_KEY" not in shown


@pytest.mark.parametrize(("client", "context", "warned"), [
    ("codex", 65536, False), ("codex", 8192, True), ("claude", 32768, True), ("claude", 49152, False),
    ("opencode", 8192, True), ("cline", 8192, True), ("llm", 2048, False),
])  # fmt: skip
def test_a_context_that_is_too_small_for_an_agent_is_told(client, context, warned, home):
    model = Model("small", context)
    recipe = CLIENTS[client].recipe(Connection(EXAMPLE.base, (model,), model))
    assert any(f"context of {context}" in note for note in recipe.notes) is warned


@pytest.mark.parametrize(
    ("variable", "value", "client", "place"),
    [
        ("CODEX_HOME", "/x/codex", "codex", "/x/codex/onecard.config.toml"),
        ("CLAUDE_CONFIG_DIR", "~/c", "claude", "HOME/c/settings.json"),
        ("XDG_CONFIG_HOME", "/x", "zed", "/x/zed/settings.json"),
        ("XDG_CONFIG_HOME", "relative", "zed", "HOME/.config/zed/settings.json"),
        ("XDG_CONFIG_HOME", "", "opencode", "HOME/.config/opencode/opencode.json"),
        ("LLM_USER_PATH", "/l", "llm", "/l/extra-openai-models.yaml"),
    ],
)
def test_files_lie_where_the_client_looks(variable, value, client, place, home, monkeypatch):
    monkeypatch.setenv(variable, value)
    (file,) = CLIENTS[client].recipe(EXAMPLE).files
    assert str(file.path) == place.replace("HOME", str(home))
