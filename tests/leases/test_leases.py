"""Memory lent to other programs: idle models make the room, and nothing is ever over the budget."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.cli.client import Client
from server.cli.lend import _Lease
from tests.e2e.server import until
from tests.http.conftest import Answer, Server, settings
from tests.many.conftest import BIG, MIB, write_model

ROOT = Path(__file__).resolve().parents[2]
PATH = "/v1/memory/lease"
BOSS = {"x-api-key": "sk-boss"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models that fill the budget."""
    folder = tmp_path_factory.mktemp("leases")
    config = settings(folder, api_keys=["sk-plain"], admin_keys=["sk-boss"])
    config["models"] = {}
    config["memory"] = {"device": "cpu", "budget": f"{700 * MIB}", "prefix_cache": 0}
    config["scheduler"]["max_wait_s"] = 1
    for name in "ab":
        write_model(folder / f"{name}.gguf", BIG)
        config["models"][name] = {"path": str(folder / f"{name}.gguf"), "context": 64}
    running = Server(config, folder / "server.log")
    yield running
    assert running.stop() == 0, running.log


def lend(server: Server, mib: float, **fields: Any) -> Answer:
    return server.post(PATH, {"bytes": int(mib * MIB), "name": "test", **fields}, headers=BOSS)


def give_back(server: Server, lease: Answer) -> None:
    assert server.call("DELETE", f"{PATH}/{lease.json()['id']}", headers=BOSS).status == 200


def memory(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = server.get("/v1/status", headers=BOSS).json()["memory"]
    assert told["reserved_bytes"] <= told["budget_bytes"]
    return told


def loaded(server: Server) -> list[str]:
    models = server.get("/v1/status", headers=BOSS).json()["models"]
    return [model["name"] for model in models if model["state"] == "ready"]


def load(server: Server, *names: str) -> None:
    for name in names:
        assert server.post(f"/v1/models/{name}/load", {}, headers=BOSS).status == 200


def test_idle_models_leave_as_many_as_have_to_and_come_back_after_it(server):
    load(server, "a", "b")

    lease = lend(server, 350)

    assert lease.status == 200, lease.body
    assert loaded(server) == ["b"]  # the one that was idle longest has left
    assert memory(server)["lent_bytes"] == 350 * MIB
    assert "reason=lease" in server.log
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
    give_back(server, lease)
    assert memory(server)["lent_bytes"] == 0
    assert server.post("/v1/chat/completions", body, headers=BOSS).status == 200
    assert loaded(server) == ["a", "b"]


def test_what_models_at_work_hold_is_not_lent_and_the_sums_are_told(server):
    load(server, "a")
    held = server.connect()
    data = b'{"model":"a","stream":true,"messages":[{"role":"user","content":"!slow 50 400"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    held.sendall(head + b"x-api-key: sk-boss\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    until(lambda: any(m["busy"] for m in server.get("/v1/status", headers=BOSS).json()["models"]), 5)

    refused = lend(server, 600)

    assert (refused.status, refused.error["code"]) == (409, "cannot_lend")
    assert "600 MiB cannot be lent: of the budget of 700 MiB there are" in refused.error["message"]
    assert "; 300 MiB are held by models that work, load or are pinned" in refused.error["message"]
    assert "wait until the others are idle, or ask for 400 MiB at most" in refused.error["message"]
    assert "a" in loaded(server)
    held.close()
    until(lambda: lend(server, 600).status == 200, 10)
    (lease,) = server.get(PATH, headers=BOSS).json()["data"]
    memory(server)
    assert server.call("DELETE", f"{PATH}/{lease['id']}", headers=BOSS).status == 200


def test_a_lease_ends_by_itself_unless_it_is_renewed(server):
    short, long = lend(server, 10, seconds=0.2), lend(server, 10, seconds=30)
    kept = server.post(f"{PATH}/{long.json()['id']}", {"seconds": 60}, headers=BOSS)
    assert kept.json()["seconds_left"] > 50
    until(lambda: [one["id"] for one in server.get(PATH, headers=BOSS).json()["data"]] == [long.json()["id"]], 5)
    assert server.post(f"{PATH}/{short.json()['id']}", {"seconds": 60}, headers=BOSS).status == 404
    give_back(server, long)


def test_who_may_lend_and_what_is_no_size(server):
    assert server.post(PATH, {"bytes": "1MiB"}, headers={"x-api-key": "sk-plain"}).status == 403
    for wrong in (
        {},
        {"bytes": 0},
        {"bytes": "much"},
        {"bytes": True},
        {"bytes": 1, "seconds": 0},
        {"bytes": 1, "name": "a\nb"},
        {"bytes": 1, "x": 1},
    ):
        assert server.post(PATH, wrong, headers=BOSS).status == 400, wrong
    refused = lend(server, 10_000)
    assert refused.status == 409
    assert refused.error["message"].endswith("there are 700 MiB free. hint: ask for 700 MiB at most")
    assert server.get(PATH, headers=BOSS).json()["data"] == []


BACK = "10 MiB are given back"
ENDS: dict[str, tuple[str, int]] = {
    "its exit code": ("raise SystemExit(3)", 3),
    "ended by a signal of ours": ("os.kill(os.getppid(), signal.SIGTERM); signal.pause()", 128 + 15),
    "that ignores it": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGTERM); raise SystemExit(4)",
        4,
    ),
    "with a quit of the terminal": ("os.kill(os.getppid(), signal.SIGQUIT); raise SystemExit(5)", 5),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
    "that hears Ctrl-C": ("raise SystemExit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)", 0),
}


def command_of(server: Server, folder: Path) -> tuple[dict[str, str], list[str]]:
    """The environment and the beginning of `onecard lend`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder), "ONECARD_API_KEY": "sk-boss"}
    return env, [sys.executable, "-m", "server.cli", "lend", "--url", server.url]


def test_a_command_runs_with_the_room_however_it_ends_and_leaves_no_lease(server, tmp_path):
    env, lend = command_of(server, tmp_path)
    cases = {
        name: (["10MiB", "--", sys.executable, "-c", f"import os, signal; {program}"], code, BACK)
        for name, (program, code) in ENDS.items()
    }
    cases["that is not there"] = (["10MiB", "--", "/no/such"], 2, "there is no such program")
    cases["for which there is no room"] = (["9GiB", "--", "true"], 1, "cannot be lent")
    started = {
        name: subprocess.Popen([*lend, *arguments], env=env, stderr=subprocess.PIPE, text=True)
        for name, (arguments, _, _) in cases.items()
    }
    for name, process in started.items():
        _, said = process.communicate(timeout=60)
        assert (process.returncode, cases[name][2] in said) == (cases[name][1], True), (name, said)
    assert server.get(PATH, headers=BOSS).json()["data"] == []


def test_a_command_that_outlives_its_terminal_keeps_its_room(server, tmp_path):
    env, lend = command_of(server, tmp_path)
    hung_up = "import os, signal; [os.kill(one, signal.SIGHUP) for one in (os.getppid(), os.getpid())]"
    program = [sys.executable, "-c", f"{hung_up}; raise SystemExit(6)"]

    done = subprocess.run(
        ["nohup", *lend, "10MiB", "--", *program], env=env, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, BACK in done.stderr) == (6, True), done.stderr


def test_a_lease_that_the_server_has_forgotten_is_taken_anew(server, capsys):
    lease = _Lease(Client(server.url, key="sk-boss"), {"bytes": 10 * MIB, "seconds": 60, "name": "test"})
    lease.take()
    (before,) = server.get(PATH, headers=BOSS).json()["data"]
    assert server.call("DELETE", f"{PATH}/{before['id']}", headers=BOSS).status == 200

    lease.renew()

    (after,) = server.get(PATH, headers=BOSS).json()["data"]
    assert (after["bytes"], after["id"] != before["id"]) == (10 * MIB, True)
    assert "has lent anew" in capsys.readouterr().err
    lease.renew()  # one that is there is renewed, and not taken twice
    assert [one["id"] for one in server.get(PATH, headers=BOSS).json()["data"]] == [after["id"]]
    assert server.call("DELETE", f"{PATH}/{after['id']}", headers=BOSS).status == 200
    lease.give_back()
    assert capsys.readouterr().err == "10 MiB are given back\n"  # although the server knew nothing of it


def test_a_lease_of_a_server_that_does_not_answer_is_not_told_to_be_given_back(server, capsys):
    client = Client(server.url, key="sk-boss")
    lease = _Lease(client, {"bytes": 10 * MIB, "seconds": 0.2, "name": "test"})
    lease.take()
    client.base = "http://127.0.0.1:1"
    lease.give_back()
    told = capsys.readouterr().err
    assert "could not be given back: http://127.0.0.1:1 does not answer" in told
    assert told.endswith("Unless the server has ended, it holds for 5 minutes at most\n")
