"""One server is asked first: what serves the model already is used, and why one is started is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from demo import GGUF_PATH, HF_PATH
from tests.cli.conftest import FAKE
from tests.e2e.server import Server, serving


def at(server: Server) -> dict[str, str]:
    """The environment of a machine whose configured server this is."""
    return {"ONECARD_SERVER__PORT": str(urlsplit(server.url).port)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Iterator[Server]:
    """One that serves a file and a folder, under names of their own, and nothing without a key."""
    folder = tmp_path_factory.mktemp("folders")
    models = {"file": GGUF_PATH, "folder": HF_PATH}
    env = {**FAKE, "ONECARD_SERVER__ADMIN_KEYS": "sesame", "ONECARD_SCHEDULER__TEMPLATE_PROCESS": "false"}
    with serving(folder, models=models, env=env) as running:
        yield running


@pytest.mark.parametrize(("path", "name"), [(GGUF_PATH, "file"), (HF_PATH, "folder")])
@pytest.mark.parametrize("command", [["run"], ["fit"], ["unload"]], ids=lambda words: words[0])
def test_a_file_that_is_served_already_is_used_under_its_name_there(onecard, folders, tmp_path, path, name, command):
    link = tmp_path / f"link-{name}{Path(path).suffix}"
    link.symlink_to(path)
    words = ["hello", "there"] if command == ["run"] else []

    done = onecard(*command, str(link), *words[:1], env={**at(folders), "ONECARD_API_KEY": "sesame"})

    assert done.returncode == 0, done.stderr
    assert f"{folders.url} serves that file as {name}\n" in done.stderr
    assert "is started" not in done.stderr
    said = {"run": "echo: hello", "fit": f"{name} fits", "unload": f"{name} is unloaded"}
    assert done.stdout.startswith(said[command[0]])


def test_why_a_server_of_its_own_is_started_is_said(onecard, folders, tmp_path):
    """The file is none, so that the other server ends at once."""
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no model")
    with another_program() as port:
        for env, why in (
            ({**at(folders), "ONECARD_API_KEY": "sesame"}, f"the server at {folders.url} does not serve {other}"),
            (at(folders), f"the server at {folders.url} refuses the key (ONECARD_API_KEY)"),
            ({"ONECARD_SERVER__PORT": str(port)}, f"what answers at http://127.0.0.1:{port} is no onecard"),
            ({"ONECARD_SERVER__PORT": "1"}, "no server answers at http://127.0.0.1:1"),
        ):
            done = onecard("run", str(other), "hello", env=env)
            assert done.stderr.splitlines()[0] == f"{why}, so one is started for this command"
            assert done.stderr.splitlines()[1].startswith("onecard: ")


def test_fit_asks_the_server_for_a_name_that_only_it_knows(onecard, server):
    told = onecard("fit", "demo", "--context", "256", "--json", env=at(server))
    assert told.stderr == f"as the server at {server.url} has it now\n"
    here, there = json.loads(told.stdout), server.get("/v1/capacity?model=demo&context=256")
    assert {here.pop("model"), there.pop("model")} == {"demo"}
    follow_the_machine = {"budget_bytes", "free_bytes", "context_max", "host"}
    assert {key: here[key] for key in here if key not in follow_the_machine} == {
        key: there[key] for key in there if key not in follow_the_machine
    }
    assert here["host"]["parts"] == there["host"]["parts"]
    unknown = onecard("fit", "dmo", "--url", server.url)
    assert (unknown.returncode, unknown.stderr) == (
        1,
        f"onecard: {server.url} has no model 'dmo'. hint: did you mean demo?\n",
    )


@pytest.mark.parametrize("name", ["chat:pirate", "gpt-4o:pirate"])
def test_an_adapter_is_asked_and_never_its_base_alone(onecard, folders, tmp_path, name):
    """By a server of our own, also where one runs that has the base's file and not the adapter."""
    (tmp_path / "o.toml").write_text(
        f"[models.chat]\npath = '{GGUF_PATH}'\naliases = ['gpt-4o']\n[models.chat.adapters]\npirate = 'gone'\n"
    )
    env = {**at(folders), "ONECARD_API_KEY": "sesame", "ONECARD_SCHEDULER__TEMPLATE_PROCESS": "false"}
    done = onecard("run", name, "hello", "--config", "o.toml", env=env)
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert "adapter 'pirate' is not served" in done.stderr


def test_models_of_a_folder_are_known_by_name_without_a_server(onecard, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(GGUF_PATH, models / "mine.gguf")
    (tmp_path / "o.toml").write_text(f"[server]\nport = 1\nmodels_dirs = ['{models}']\n")
    fit = onecard("fit", "mine", "--config", "o.toml", "--budget", "1GiB", "--json")
    assert json.loads(fit.stdout)["model"] == "mine", fit.stderr
    run = onecard("run", "mine", "hello", "--config", "o.toml", env={"ONECARD_SCHEDULER__TEMPLATE_PROCESS": "false"})
    assert run.stdout == "echo: hello\n", run.stderr


def test_show_and_list_ask_the_server_first(onecard, folders, tmp_path):
    """What it tells wins; the files tell the rest where they are ours and the very same."""
    env = {**at(folders), "ONECARD_API_KEY": "sesame"}
    (tmp_path / "o.toml").write_text(f"[models.folder]\npath = '{GGUF_PATH}'\n[models.mine]\npath = '{HF_PATH}'\n")
    listed = onecard("list", "--json", "--config", "o.toml", env=env)
    assert listed.stderr.startswith(f"as the server at {folders.url} has it now\n")
    told = json.loads(listed.stdout)
    found = [(one["name"], one["path"], one["from"], one["state"] is None) for one in told["models"]]
    assert (told["server"], found) == (
        folders.url,
        [("file", str(GGUF_PATH), "built in", False), ("folder", str(HF_PATH), "a folder", False)],
    )
    assert "STATE" in onecard("list", env=env).stdout.splitlines()[0]

    by_file = json.loads(onecard("show", str(GGUF_PATH), "--json", env=env).stdout)
    assert (by_file["name"], by_file["server"], by_file["path"]) == ("file", folders.url, str(GGUF_PATH))
    other = json.loads(onecard("show", "folder", "--json", "--config", "o.toml", env=env).stdout)
    assert (other["backend"], "path" in other, "parameters" in other) == ("bnb", False, False)
    assert other["fits"] is True


def test_without_the_key_or_a_server_list_and_show_tell_what_is_here(onecard, folders):
    listed = onecard("list", "--json", env=at(folders))
    assert f"the server at {folders.url} refuses the key" in listed.stderr
    assert json.loads(listed.stdout)["server"] is None
    assert json.loads(onecard("show", "demo", "--json", env=at(folders)).stdout)["from"] == "built in"
    assert onecard("list", "--url", folders.url).returncode == 1
    assert onecard("show", "demo", "--url", "http://127.0.0.1:1").returncode == 4


@contextmanager
def another_program() -> Iterator[int]:
    """A web server that says yes to everything."""

    class Yes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Yes) as web:
        thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield web.server_port
        web.shutdown()
        thread.join()
