"""`onecard connect`: what it shows is right for every client and any name, and what it writes harms no file."""

from __future__ import annotations

import ast
import json
import os
import shlex
import stat
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from server.cli.connect import files, jsonc
from server.cli.connect.clients import CLIENTS
from server.cli.connect.command import connect
from server.cli.connect.edits import EditError, Put, PutEntries, edited, fresh, read
from server.cli.connect.facts import Connection, Model
from server.cli.connect.recipe import File
from server.cli.console import CliError
from tests.cli.conftest import FAKE
from tests.e2e.server import Server, serving

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    for name in ("CODEX_HOME", "CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LLM_USER_PATH", "ONECARD_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# What is shown


@pytest.mark.parametrize("client", CLIENTS)
def test_the_page_shows_what_the_command_prints(client, home):
    page = (ROOT / "docs/clients.md").read_text()
    for piece in CLIENTS[client].recipe(EXAMPLE).pieces:
        assert f"```{piece.language}\n{piece.text}\n```" in page
        assert piece.title in page or piece.title[0].upper() + piece.title[1:] in page


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


# Changing a file


BEFORE = {
    "toml": '# mine\nmodel = "gpt-5"  # keep\n\n[tools]\nweb = true\n',
    "json": '{\n\t"theme": "dark",\n\t"list": [1, 2]\n}\n',
    "jsonc": '// mine\n{\n  "theme": "dark", // keep\n  /* and this */\n  "list": [\n    1,\n    2, // two\n  ],\n}\n',
    "yaml": "# mine\ntheme: dark   # keep\n\nlist:\n- 1\n- 2  # two\n",
}
DEEP = Put(("deep", "er", "on card"), {"url": "http://x/v1", "list": [{"a": "ü"}]})


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", BEFORE)
def test_what_else_a_file_holds_stays(kind, ending):
    text = BEFORE[kind].replace("\n", ending)
    after = edited(kind, text, (DEEP,))
    assert read(kind, after) == {**read(kind, text), "deep": {"er": {"on card": DEEP.value}}}
    assert [line for line in text.split(ending) if "mine" in line or "keep" in line or "two" in line] == [
        line for line in after.split(ending) if "mine" in line or "keep" in line or "two" in line
    ]
    assert ("\r\n" in after) == (ending == "\r\n")
    assert after.count("\n") == after.count(ending)
    assert edited(kind, after, (DEEP,)) == after, "once more changes nothing"


@pytest.mark.parametrize("kind", BEFORE)
@pytest.mark.parametrize("empty", ["", "\n", " \n\n"])
def test_a_file_that_says_nothing_gets_what_a_new_one_has(kind, empty):
    assert read(kind, edited(kind, empty, (DEEP,))) == read(kind, fresh(kind, (DEEP,)))


@pytest.mark.parametrize(("kind", "comment"), [("toml", "# x\n"), ("yaml", "# x\n"), ("jsonc", "// x\n/* y */\n")])
def test_comments_alone_stay(kind, comment):
    after = edited(kind, comment, (DEEP,))
    assert after.startswith(comment)
    assert read(kind, after) == read(kind, fresh(kind, (DEEP,)))


BROKEN = {
    "toml": ['a = "', "a = 1\na = 2\n", "[x\n", "deep = 3\n", "\x00"],
    "json": ["{", '{"a": 1,}', '// c\n{"a": 1}', "[1]", "{'a': 1}", '{"a" 1}', '{"a": 1} x', "nul", '{"deep": []}'],
    "jsonc": ["{", '{"a": }', "/* {}", "[1, 2]", '{"a": "\n"}', '{"a": 1 "b": 2}', "{,}", '{"deep": 7}', "[" * 5000],
    "yaml": [
        "a: [",
        "a: 1\na: 2\n",
        "--- {}\n--- {}\n",
        "- 1\n",
        "\tx: 1",
        "deep: text\n",
        "a: *nowhere\n",
        "a: &x [*x",
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in BROKEN.items() for text in texts])
def test_a_broken_file_is_not_touched(kind, text):
    with pytest.raises(EditError) as problem:
        edited(kind, text, (DEEP,))
    assert "\n" not in str(problem.value)


MINE = PutEntries(("models",), ({"name": "onecard", "n": 2},), lambda entry: entry.get("name") == "onecard")
OTHER = {"name": "other", "n": 1}


@pytest.mark.parametrize("kind", BEFORE)
@pytest.mark.parametrize(
    "place", [[], [OTHER], [{"name": "onecard"}], [{"name": "onecard"}, OTHER, {"name": "onecard"}]]
)
def test_entries_of_an_earlier_time_are_replaced(kind, place):
    text = fresh(kind, (Put(("x",), 1), Put(("models",), place)))
    after = read(kind, edited(kind, text, (MINE,)))
    assert after == {"x": 1, "models": [*([OTHER] if OTHER in place else []), *MINE.entries]}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), VALUES, max_size=4),
    st.lists(st.text(max_size=4), min_size=1, max_size=3),
    VALUES,
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_json_is_changed_at_one_place_alone(whole, path, value, indent, ascii_only):
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
    node = expected = json.loads(text)
    for key in path[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            with pytest.raises(EditError, match="holds no table"):
                edited("json", text, (Put(tuple(path), value),))
            return
    node[path[-1]] = value
    assert json.loads(edited("json", text, (Put(tuple(path), value),))) == expected


def test_a_comment_stays_with_its_line():
    text = '{\n  "a": 1 // one\n}\n'
    assert jsonc.put(text, ("b",), 2, comments=True) == '{\n  "a": 1, // one\n  "b": 2\n}\n'


# Writing and putting back


def file(path: Path, value: str = "new") -> File:
    return File(path, "jsonc", (Put(("onecard",), value),))


def put(path: Path, value: str = "new") -> None:
    files.write("zed", [files.plan("zed", file(path, value))])


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(one.relative_to(folder)): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


@pytest.mark.parametrize("before", [None, b"", b"\xef\xbb\xbf{}", b'{"a": 1}', b'// x\r\n{\r\n"a": [1,],\r\n}'])
@pytest.mark.parametrize("times", [1, 2])
def test_undo_puts_back_every_byte_and_leaves_nothing(before, times, home):
    path = home / "below" / "settings.json"
    (home / ".local/share/onecard/connect").mkdir(parents=True)
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
        path.chmod(0o640)
    then = tree(home)
    for number in range(times):
        put(path, f"new {number}")
    assert read("jsonc", path.read_text(encoding="utf-8-sig"))["onecard"] == f"new {times - 1}"
    if before is None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    else:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    files.undo("zed")
    assert tree(home) == then


def test_undo_refuses_what_was_changed_since(home):
    path = home / "settings.json"
    path.write_text("{}")
    put(path)
    path.write_text('{"mine": 1}')
    with pytest.raises(CliError, match="changed since") as problem:
        files.undo("zed")
    assert f"{path}.before-onecard" in problem.value.message
    assert path.read_text() == '{"mine": 1}'
    put(path)
    files.undo("zed")
    assert path.read_text() == '{"mine": 1}', "a later write has a backup of its own"


def test_undo_without_a_write_is_told(home):
    with pytest.raises(CliError, match="nothing to undo"):
        files.undo("zed")


def test_a_link_stays_a_link(home):
    real = home / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_text('{"a": 1}')
    link = home / "settings.json"
    link.symlink_to(real)
    put(link)
    assert link.is_symlink()
    assert read("json", real.read_text()) == {"a": 1, "onecard": "new"}
    files.undo("zed")
    assert link.is_symlink()
    assert real.read_text() == '{"a": 1}'


def _read_only(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o444)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _circle(path: Path) -> None:
    path.symlink_to(path)


def _latin(path: Path) -> None:
    path.write_bytes(b'{"a": "\xe9"}')


def _broken(path: Path) -> None:
    path.write_text('{"a": ')


@pytest.mark.parametrize("make", [_read_only, _folder, _pipe, _circle, _latin, _broken])
def test_a_file_that_cannot_be_changed_is_left_as_it_is(make, home):
    path = home / "settings.json"
    make(path)
    before = path.lstat()
    with pytest.raises(CliError) as problem:
        put(path)
    assert str(path) in problem.value.message
    assert "Traceback" not in problem.value.message
    after = path.lstat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)
    assert sorted(one.name for one in home.iterdir()) == ["settings.json"]


def test_where_one_of_two_files_cannot_be_written_none_is(home):
    (home / "a-file").write_text("x")
    plans = [files.plan("zed", file(home / "one.json")), files.plan("zed", file(home / "two.json"))]
    bad = files.Plan(home / "a-file" / "below.json", None, b"{}", None, ())
    with pytest.raises(CliError, match="Nothing was changed"):
        files.write("zed", [*plans, bad])
    assert not (home / "one.json").exists()
    with pytest.raises(CliError, match="nothing to undo"):
        files.undo("zed")


def test_a_second_write_that_fails_leaves_the_first(home):
    one, two = home / "one.json", home / "two.json"
    one.write_text("{}")
    put(one)
    then = tree(home)
    two.write_text("{}")
    bad = files.Plan(home / "two.json" / "below.json", None, b"{}", None, ())
    with pytest.raises(CliError, match="Nothing was changed"):
        files.write("zed", [files.plan("zed", file(one, "newer")), bad])
    assert tree(home) == {**then, "two.json": b"{}"}
    files.undo("zed")
    assert one.read_text() == "{}"


def test_a_backup_that_is_gone_costs_nothing_of_the_file(home):
    path = home / "settings.json"
    path.write_text('{"mine": 1}')
    put(path)
    (home / "settings.json.before-onecard").unlink()
    with pytest.raises(CliError, match="is gone"):
        files.undo("zed")
    put(path, "newer")
    assert read("json", path.read_text()) == {"mine": 1, "onecard": "newer"}
    files.undo("zed")
    assert read("json", path.read_text()) == {"mine": 1, "onecard": "new"}


def test_a_name_of_a_backup_that_is_taken_is_not_used(home):
    path = home / "settings.json"
    path.write_text("{}")
    (home / "settings.json.before-onecard").write_text("of another time")
    put(path)
    files.undo("zed")
    assert (home / "settings.json.before-onecard").read_text() == "of another time"
    assert path.read_text() == "{}"


# The command

KEY = "sesame-open-4711"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"{KEY}\n")
    (folder / "keys").chmod(0o600)
    (folder / "c.toml").write_text("[models.chat]\npath = 'demo'\ncontext = 3072\naliases = ['gpt']\n")
    flags = ("--config", f"{folder}/c.toml", "--api-key-file", f"{folder}/keys")
    with serving(folder, models={}, flags=flags, env=FAKE) as server:
        yield server


def run(client: str | None, **given: Any) -> None:
    asked: dict[str, Any] = {"model": None, "write_it": False, "undo_it": False, "url": None, "config": None, **given}
    connect(client, **asked)


def test_the_running_server_tells_models_and_context(keyed, home, capsys, monkeypatch):
    monkeypatch.setenv("ONECARD_API_KEY", KEY)
    run("codex", url=keyed.url)
    shown = capsys.readouterr()
    said = tomllib.loads(shown.out)
    assert (said["model"], said["model_context_window"]) == ("chat", 3072)
    assert said["model_providers"]["onecard"]["env_key"] == "ONECARD_API_KEY"
    assert KEY not in shown.out + shown.err
    run("codex", url=f"{keyed.url}/v1/", write_it=True)
    assert (home / ".codex/onecard.config.toml").read_text() == shown.out
    run("codex", undo_it=True)
    assert not (home / ".codex").exists()
    assert KEY not in "".join(capsys.readouterr())


def test_an_alias_is_the_name_that_the_client_gets(keyed, home, capsys, monkeypatch):
    monkeypatch.setenv("ONECARD_API_KEY", KEY)
    run("codex", url=keyed.url, model="gpt")
    assert tomllib.loads(capsys.readouterr().out)["model"] == "gpt"
    with pytest.raises(CliError, match="did you mean chat"):
        run("codex", url=keyed.url, model="chta")


def test_a_server_that_tells_nothing_without_a_key_says_what_to_set(keyed, home, monkeypatch):
    monkeypatch.delenv("ONECARD_API_KEY", raising=False)
    with pytest.raises(CliError, match="set ONECARD_API_KEY"):
        run("codex", url=keyed.url)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            403,
            {"error": {"message": "This server answers only to its names. hint: --allowed-host x"}},
            "--allowed-host x",
        ),
        (404, {"detail": "Not Found"}, "answered 404"),
        (200, "no JSON", "is it onecard"),
        (200, {"data": []}, "no model here"),
        (200, {"data": [{"id": "a\x1b[31m"}, {"id": "b", "unusable": "it\x1b[31m is broken"}]}, "no model here"),
        (200, ["x"], "no model here"),
        (200, {"data": 3}, "no model here"),
        (200, {"data": [3, {}, {"id": None}, {"id": " "}]}, "no model here"),
    ],
)
def test_a_server_that_says_no_or_is_another_one_is_told(status, body, told, home, capsys):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(CliError) as problem:
            run("codex", url=f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert told in problem.value.message
    assert "\x1b" not in problem.value.message + "".join(capsys.readouterr())


def test_without_a_server_the_configuration_tells_and_says_so(home, capsys):
    (home / "c.toml").write_text(
        "[server]\nport = 9\n[models.chat]\npath = 'demo'\ncontext = 2048\n[models.gone]\npath = 'gone.gguf'\n"
    )
    run("codex", config=home / "c.toml")
    shown = capsys.readouterr()
    assert tomllib.loads(shown.out)["model_context_window"] == 2048
    assert tomllib.loads(shown.out)["model_providers"]["onecard"]["base_url"] == "http://127.0.0.1:9/v1"
    assert "does not answer" in shown.err
    assert "gone is left out" in shown.err


def test_all_clients_are_listed(capsys):
    run(None)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CLIENTS)


@pytest.mark.parametrize(
    ("client", "given", "code", "told"),
    [
        ("codx", {}, 2, "did you mean codex?"),
        ("codex", {"write_it": True, "undo_it": True}, 2, "contradict"),
        ("curl", {"write_it": True}, 2, "no file to write"),
        ("codex", {"url": "http://127.0.0.1:9"}, 4, "does not answer"),
    ],
)
def test_what_cannot_be_is_a_sentence(client, given, code, told, home):
    with pytest.raises(CliError) as problem:
        run(client, **given)
    assert problem.value.code == code
    assert told in problem.value.message
