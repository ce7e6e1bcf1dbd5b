"""`onecard list` and `onecard ps`."""

import json

from demo import GGUF_PATH
from server.settings.builtin import SERVED, built_in_path
from tests.cli.conftest import FAKE
from tests.e2e.server import serving


def test_list_shows_the_catalogue_and_the_cache(onecard, tmp_path):
    snapshot = tmp_path / "hub" / "models--org--chat" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "chat-Q4_K_M.gguf").write_bytes(b"x" * 2048)
    (snapshot / "half-00001-of-00002.gguf").write_bytes(b"x")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    listed = json.loads(onecard("list", "--json").stdout)
    found = [(model["name"], model["path"], model["from"]) for model in listed["models"]]
    assert found == [(name, str(path), "built in") for name in SERVED if (path := built_in_path(name)) is not None]
    assert ("demo", str(GGUF_PATH), "built in") in found
    (cached,) = listed["cache"]
    assert (cached["reference"], cached["size_bytes"]) == ("hf:org/chat:Q4_K_M", 2048)
    table = onecard("list").stdout
    assert "hf:org/chat:Q4_K_M" in table
    assert "2 KiB" in table


def test_ps_shows_models_and_the_budget(onecard, server):
    onecard("run", "--url", server.url, "demo", "hello")
    status = json.loads(onecard("ps", "--url", server.url, "--json").stdout)
    assert set(status) == {"memory", "models", "queue", "training", "unknown_names"}
    assert {"device", "budget_bytes", "reserved_bytes", "other_bytes"} <= set(status["memory"])
    (model,) = status["models"]
    assert (model["name"], model["state"]) == ("demo", "ready")
    table = onecard("ps", env={"ONECARD_URL": f"{server.url}/v1"}).stdout
    assert table.splitlines()[0].split() == ["NAME", "STATE", "MEMORY", "CONTEXT", "BUSY", "TOK/S", "IDLE", "UNTIL"]
    assert "A demo  ready" in table
    assert " of " in table.splitlines()[2]
    assert "\x1b" not in table


def test_ps_explains_its_memory_and_shows_the_last_error_under_the_table(onecard, tmp_path):
    env = {"ONECARD_TEST_LOAD": "fail the disk is on fire"}
    with serving(tmp_path, models={"demo": "demo"}, env={**FAKE, **env}) as server:
        assert onecard("load", "--url", server.url, "demo").returncode == 1
        lines = onecard("ps", "--url", server.url).stdout.splitlines()
    assert lines[3].startswith("demo: last error: ")
    assert "the disk is on fire" in lines[3]
    assert lines[4] == "MEMORY is what was predicted / what was measured"


def test_nothing_in_the_name_of_a_file_reaches_the_terminal(onecard, tmp_path):
    file = tmp_path / "a\x1b]0;evil\x07\u202eb.gguf"
    file.write_bytes(GGUF_PATH.read_bytes())
    tables = [f"[models.{name}]\npath = {json.dumps(str(path))}\n" for name, path in (("a", file), ("b", f"{file}-"))]
    (tmp_path / "c.toml").write_text("[server]\nport = 1\n" + "".join(tables))
    for command in (["list"], ["show", "a"], ["show", "b"], ["config", "check"]):
        done = onecard(*command, "--config", "c.toml")
        shown = done.stdout + done.stderr
        assert "evil" in shown
        assert not {"\x1b", "\x07", "\u202e"} & set(shown), command
    assert json.loads(onecard("list", "--json", "--config", "c.toml").stdout)["models"][0]["path"] == str(file)


def test_list_shows_paths_under_the_home_folder_as_people_write_them(onecard, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "c.toml").write_text("[models.a]\npath = 'a.gguf'\n[models.b]\npath = 'b.gguf'")
    env = {"HOME": str(tmp_path)}
    table = onecard("list", "--config", "c.toml", env=env).stdout.splitlines()
    assert table[1].split() == ["a", "gguf", "4", "B", "~/a.gguf"]
    assert table[2].split() == ["b", "gguf", "missing", "~/b.gguf"]
    a, b = json.loads(onecard("list", "--config", "c.toml", "--json", env=env).stdout)["models"]
    assert (a["path"], a["missing"]) == (str(tmp_path / "a.gguf"), None)
    assert "there is no file" in b["missing"]


def test_ps_without_a_server_is_exit_code_4(onecard):
    done = onecard("ps", "--url", "http://127.0.0.1:9")
    assert done.returncode == 4
    assert done.stderr == (
        "onecard: http://127.0.0.1:9 does not answer. "
        "hint: `onecard serve` starts a server, --url or ONECARD_URL names another one\n"
    )


def test_ps_without_the_key_of_a_server_says_where_it_goes(onecard, tmp_path):
    (tmp_path / "keys").write_text("sesame-open-4711\n")
    (tmp_path / "keys").chmod(0o600)
    with serving(tmp_path, models={"demo": "demo"}, flags=("--api-key-file", f"{tmp_path}/keys"), env=FAKE) as server:
        done = onecard("ps", "--url", server.url)
        assert done.returncode == 1
        assert done.stderr.endswith(" hint: set ONECARD_API_KEY to the server's key\n")
        assert onecard("ps", "--url", server.url, env={"ONECARD_API_KEY": "sesame-open-4711"}).returncode == 0
