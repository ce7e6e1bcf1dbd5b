"""`onecard config reload`, SIGHUP and `--watch` on a running server, over the fake engine: no stream is cut."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests import warm
from tests.cli.conftest import FAKE, clean_environment
from tests.e2e.server import Server, serving, until
from tests.models import broken
from tests.present import present

BASE: dict[str, Any] = {"scheduler": {"template_process": False}, "memory": {"device": "cpu", "budget": "1GiB"}}


def toml(document: dict[str, Any]) -> str:
    """Tables of plain values."""
    lines = []
    for section, table in document.items():
        tables = {f"{section}.{name}": t for name, t in table.items()} if section == "models" else {section: table}
        for title, values in tables.items():
            lines.append(f"[{title}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


class Live:
    """A server with a configuration file that changes."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self.file = file

    def write(self, models: dict[str, dict[str, Any]], **sections: dict[str, Any]) -> None:
        written = {"server": {}, **BASE, **sections, "models": models}
        fresh = self.file.with_suffix(".new")
        fresh.write_text(toml(written))
        fresh.replace(self.file)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        arguments += ("--url", self.server.url)
        folder = self.file.parent
        return warm.run("server.cli", arguments, env=clean_environment(folder), cwd=folder)

    def reload(self) -> dict[str, Any]:
        kind: Any = object
        told: dict[str, Any] = self.server.client().post("/config/reload", body={}, cast_to=kind)
        return told

    def names(self) -> list[str]:
        return [model["id"] for model in self.server.get("/v1/models")["data"]]

    def model(self, name: str) -> dict[str, Any] | None:
        return next((m for m in self.server.get("/v1/status")["models"] if m["name"] == name), None)

    def ask(self, model: str, text: str = "hello", **fields: Any) -> str:
        messages: Any = [{"role": "user", "content": text}]
        answer = self.server.client().chat.completions.create(model=model, messages=messages, **fields)
        return answer.choices[0].message.content or ""

    def stream(self, model: str, text: str) -> Iterator[str]:
        messages: Any = [{"role": "user", "content": text}]
        chunks: Any = self.server.client().chat.completions.create(model=model, messages=messages, stream=True)
        return (chunk.choices[0].delta.content or "" for chunk in chunks)

    def told(self, what: str) -> list[dict[str, Any]]:
        """What was logged of this."""
        lines = map(json.loads, self.server.log.read_text().splitlines())
        return [line for line in lines if line["event"] == what]


def path_of(folder: Path, name: str) -> str:
    file = folder / f"{name}.gguf"
    if not file.exists():
        file.write_bytes(broken.VALID.encode())
    return str(file)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("reload")
    file = folder / "onecard.toml"
    live = Live(None, file)  # type: ignore[arg-type]
    live.write({"a": {"path": path_of(folder, "a"), "context": 512}})
    flags = ("--config", str(file), "--log-format", "json")
    with serving(folder, models={}, flags=flags, env={**clean_environment(folder), **FAKE}) as server:
        live.server = server
        yield live
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def test_a_stream_goes_through_a_reload_that_adds_changes_and_removes(running: Live):
    folder = running.file.parent
    kept, gone = ({"path": path_of(folder, name), "context": 512} for name in ("kept", "gone"))
    running.write({"kept": kept, "gone": gone})
    running.reload()
    streams = [running.stream(name, "!slow 20 60") for name in ("kept", "gone")]
    begun = [next(stream) for stream in streams]
    running.write({"kept": {**kept, "context": 256, "aliases": ["k"]}, "new": {**kept, "path": path_of(folder, "new")}})

    told = running.reload()

    assert told["added"] == ["new"]
    assert told["removed"] == ["gone"]
    assert told["changed"] == {"kept": ["aliases", "context"]}
    assert told["reloading"] == ["kept"]
    assert running.names() == ["kept", "new"]
    assert running.model("gone") is not None, "it still serves what it has accepted"
    assert running.ask("new") == "echo: hello"
    waiting = threading.Thread(target=running.ask, args=("k",))
    waiting.start()
    for first, stream in zip(begun, streams, strict=True):
        assert (first + "".join(stream)).split()[-1] == "59"
    waiting.join(20)
    until(lambda: running.model("gone") is None, within_s=10, what="it is forgotten")
    until(lambda: (running.model("kept") or {}).get("context") == 256, within_s=10, what="it is loaded as configured")
    page = running.server.metrics()
    names = {dict(labels).get("model_name") for _, labels in page} - {None}
    assert names == {"kept", "new"}


def test_what_changes_no_plan_changes_at_once_and_loads_nothing_anew(running: Live):
    folder = running.file.parent
    config = {"path": path_of(folder, "a"), "context": 512}
    running.write({"a": config})
    running.reload()
    running.ask("a")
    pid = present(running.model("a"))["pid"]
    other = {"aliases": ["b"], "keep_alive_s": 77, "pinned": True, "priority": 3, "system": "Say yes.", "preload": True}
    running.write({"a": {**config, **other}}, defaults={"json_whitespace": "compact"})

    told = running.reload()

    assert told["reloading"] == []
    assert sorted(told["changed"]["a"]) == sorted([*other, "json_whitespace"])
    assert told["settings"] == ["defaults.json_whitespace"]
    assert running.ask("b") == "echo: hello"
    line = present(running.model("a"))
    assert (line["pid"], line["pinned"], line["keep_alive_s"]) == (pid, True, -1)
    assert running.server.get("/v1/models/b")["system"] == "Say yes."


@pytest.mark.parametrize(
    ("models", "sections", "said"),
    [
        ({"a": {"path": "a.gguf", "contxt": 5}}, {}, "did you mean 'context'"),
        ({"a": {"path": "a.gguf"}, "b": {"path": "a.gguf", "aliases": ["a"]}}, {}, "already a model's name"),
        ({"a": {"path": "a.gguf"}}, {"scheduler": {"preload": ["x"]}}, "preload names 'x'"),
        ({"a": {"path": "a.gguf", "backend": "bnb"}}, {}, "leave backend out"),
        ({"a": {"path": "a.gguf"}}, {"server": {"allowed_hosts": ["llm.home.lan"]}}, "there is no key"),
        ({"a": {"path": "a.gguf"}}, {"server": {"api_key_file": "nowhere"}}, "api_key_file"),
    ],
)
def test_a_broken_configuration_changes_nothing_and_is_told(running: Live, models, sections, said):
    path_of(running.file.parent, "a")
    running.write({"a": {"path": "a.gguf", "context": 512}})
    running.reload()
    before = running.server.get("/v1/models")
    running.write(models, **sections)

    with pytest.raises(openai.BadRequestError, match="The configuration was not taken over") as refused:
        running.reload()

    assert said in str(refused.value)
    assert refused.value.code == "invalid_configuration"
    assert said in running.told("config_refused")[-1]["reason"]
    assert running.server.get("/v1/models")["data"] == before["data"]
    assert running.ask("a") == "echo: hello"


def test_a_reference_that_comes_into_the_cache_is_served_without_a_reload(running: Live):
    """What is missing is told, by the reload and by a request; `onecard pull` beside the server is enough."""
    running.write({"late": {"path": "hf:org/late:F16"}})
    told = running.reload()
    assert "hint: `onecard pull org/late:F16` fetches it" in told["missing"]["late"]
    with pytest.raises(openai.InternalServerError, match="org/late is not in the cache") as refused:
        running.ask("late")
    assert refused.value.status_code == 503
    repo = running.file.parent / "hub" / "models--org--late"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("one")
    (repo / "snapshots" / "one").mkdir(parents=True)
    Path(path_of(repo / "snapshots" / "one", "late-F16"))
    assert running.ask("late") == "echo: hello"
    assert running.reload()["missing"] == {}


def test_what_needs_a_restart_is_named_and_kept(running: Live):
    running.write(
        {"a": {"path": "a.gguf", "context": 512}},
        server={"drain_s": 1, "max_queue": 7},
        memory={"device": "cpu", "budget": "2GiB"},
    )

    done = running.command("config", "reload")

    assert done.returncode == 0, done.stderr
    assert "changed server.max_queue\n" in done.stdout
    assert "server.drain_s holds from the next start on\n" in done.stdout
    assert "memory.budget holds from the next start on\n" in done.stdout
    assert running.server.get("/v1/status")["memory"]["budget_bytes"] == 2**30


def test_keys_change_while_it_runs(running: Live):
    model = {"a": {"path": "a.gguf", "context": 512}}
    running.write(model)
    running.reload()
    running.write(model, server={"api_keys": ["plain-key-1"], "admin_keys": ["test-key"]})
    assert running.reload()["settings"] == ["server.api_keys", "server.admin_keys"]
    with pytest.raises(OSError, match="401"):
        running.server.get("/v1/models")
    running.write(model)
    assert running.reload()["settings"] == ["server.api_keys", "server.admin_keys"]
    assert running.names() == ["a"]


def test_hangup_reads_the_configuration_again(running: Live):
    path_of(running.file.parent, "hup")
    running.write({"a": {"path": "a.gguf", "context": 512}, "hup": {"path": "hup.gguf"}})
    running.server.process.send_signal(signal.SIGHUP)
    until(lambda: running.names() == ["a", "hup"], within_s=10, what="the model is added")
    assert running.told("config_reloaded")[-1]["by"] == "SIGHUP"


def test_watching_takes_over_what_changes_and_a_folder_s_models(tmp_path: Path):
    models = tmp_path / "models"
    models.mkdir()
    path_of(models, "one")
    live = Live(None, tmp_path / "onecard.toml")  # type: ignore[arg-type]
    live.write({"a": {"path": path_of(tmp_path, "a")}}, server={"models_dirs": [str(models)]})
    flags = ("--config", str(live.file), "--watch", "--log-format", "json")
    with serving(tmp_path, models={}, flags=flags, env={**clean_environment(tmp_path), **FAKE}) as live.server:
        assert live.names() == ["a", "one"]
        path_of(models, "two")
        until(lambda: live.names() == ["a", "one", "two"], within_s=15, what="the folder's new model is served")
        live.file.write_text("[models")
        until(lambda: live.told("config_refused"), within_s=15, what="a broken file is told")
        live.write({"b": {"path": path_of(tmp_path, "b")}})
        until(lambda: live.names() == ["b"], within_s=15, what="the whole file is taken over")
        assert live.server.stop() == 0


def test_a_terminal_that_closes_ends_the_server(environment, tmp_path: Path):
    """SIGHUP means two things: the kernel's, when the terminal goes, is the end."""
    program = (
        "import os, subprocess, sys; os.setsid(); os.close(os.open(os.ttyname(0), os.O_RDWR)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'server.cli', 'serve', '--port', '0'])"
    )
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        seen = b""
        while b"serves http" not in seen:
            seen += os.read(master, 4096)
        os.close(master)
        assert process.wait(20) == 0


OWN = {"role": "developer", "content": "Be kind."}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("path", "body", "own", "count"),
    [
        (
            "/chat/completions",
            CHAT,
            {"messages": [{"role": "developer", "content": "Be kind."}, *CHAT["messages"]]},
            "",
        ),
        ("/messages", {**CHAT, "max_tokens": 9}, {"system": "Be kind."}, "/messages/count_tokens"),
        ("/responses", {"input": "hello"}, {"instructions": "Be kind."}, "/responses/input_tokens"),
    ],
)
def test_a_system_message_begins_what_has_none(running: Live, path, body, own, count):
    def post(path: str, body: dict[str, Any]) -> httpx2.Response:
        return httpx2.post(f"{running.server.url}/v1{path}", json=body).raise_for_status()

    def ask(**fields: Any) -> tuple[int, str | None, int]:
        answer = post(path, {"model": "a", **body, **fields})
        usage = answer.json()["usage"]
        asked = {key: value for key, value in {"model": "a", **body, **fields}.items() if key != "max_tokens"}
        counted = post(count, asked).json()["input_tokens"] if count else 0
        return usage.get("input_tokens", usage.get("prompt_tokens")), answer.headers.get("x-onecard-system"), counted

    running.write({"a": {"path": "a.gguf", "context": 512}})
    running.reload()
    plain, with_own = ask(), ask(**own)
    running.write({"a": {"path": "a.gguf", "context": 512, "system": "Be kind."}})
    running.reload()
    assert ask() == (with_own[0], "config", with_own[2])
    assert ask(**own) == with_own
    running.write({"a": {"path": "a.gguf", "context": 512, "system": ""}}, defaults={"system": "Be kind."})
    running.reload()
    assert ask() == plain
    assert with_own[0] > plain[0]
