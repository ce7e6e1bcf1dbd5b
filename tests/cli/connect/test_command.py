"""`onecard connect` asks the running server, else the configuration, and says what cannot be."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.cli.connect.clients import CLIENTS
from server.cli.connect.command import connect
from server.cli.console import CliError
from tests.cli.conftest import FAKE
from tests.e2e.server import Server, serving

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
