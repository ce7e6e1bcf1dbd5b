"""`onecard list` and `onecard ps`."""

import json

from demo import GGUF_PATH


def test_list_shows_the_catalogue_and_the_cache(onecard, tmp_path):
    snapshot = tmp_path / "hub" / "models--org--chat" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "chat-Q4_K_M.gguf").write_bytes(b"x" * 2048)
    (snapshot / "half-00001-of-00002.gguf").write_bytes(b"x")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    listed = json.loads(onecard("list", "--json").stdout)
    assert [(model["name"], model["path"]) for model in listed["models"]] == [("demo", str(GGUF_PATH))]
    (cached,) = listed["cache"]
    assert (cached["reference"], cached["size_bytes"]) == ("hf:org/chat:Q4_K_M", 2048)
    table = onecard("list").stdout
    assert "hf:org/chat:Q4_K_M" in table
    assert "2 KiB" in table


def test_ps_shows_models_and_the_budget(onecard, server):
    onecard("run", "--url", server.url, "demo", "hello")
    status = json.loads(onecard("ps", "--url", server.url, "--json").stdout)
    assert set(status) == {"memory", "models", "queue"}
    assert {"device", "budget_bytes", "reserved_bytes", "other_bytes"} <= set(status["memory"])
    (model,) = status["models"]
    assert (model["name"], model["state"]) == ("demo", "ready")
    table = onecard("ps", env={"ONECARD_URL": f"{server.url}/v1"}).stdout
    assert table.splitlines()[0].split() == ["NAME", "STATE", "MEMORY", "CONTEXT", "BUSY", "TOK/S", "IDLE", "UNTIL"]
    assert "A demo  ready" in table
    assert " of " in table.splitlines()[2]
    assert "\x1b" not in table


def test_ps_without_a_server_is_exit_code_4(onecard):
    done = onecard("ps", "--url", "http://127.0.0.1:9")
    assert done.returncode == 4
    assert done.stderr == "onecard: http://127.0.0.1:9 does not answer. hint: `onecard serve` starts a server\n"
