"""`onecard load`, `onecard unload`, the stacked bar of `onecard ps`, and `ps --watch`."""

import json
import os
import signal
import subprocess
import sys

import pytest

from server.cli.ps import bars, held_bytes, marks_of
from tests.cli.conftest import FAKE
from tests.e2e.server import serving
from tests.present import present

MIB = 2**20


def test_load_and_unload_say_what_became_of_the_model(onecard, server):
    onecard("unload", "--url", server.url, "demo")
    done = onecard("load", "--url", server.url, "demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("demo is ready: ")
    assert "2 requests at once" in done.stdout

    again = onecard("load", "--url", server.url, "demo", "--json")
    line = json.loads(again.stdout)
    assert (line["name"], line["state"]) == ("demo", "ready")
    assert again.stderr == ""

    gone = onecard("unload", "--url", server.url, "demo")
    assert (gone.returncode, gone.stdout) == (0, "demo is unloaded\n")
    assert onecard("unload", "--url", server.url, "demo").stdout == "demo is unloaded\n"


def test_load_of_an_unknown_model_and_without_a_server(onecard, server):
    unknown = onecard("load", "--url", server.url, "no/such?x")
    assert unknown.returncode == 1
    assert "does not exist" in unknown.stderr
    assert onecard("load", "--url", "http://127.0.0.1:9", "demo").returncode == 4
    assert onecard("unload", "--url", "http://127.0.0.1:9", "demo").returncode == 4


def test_load_of_what_can_never_fit_is_exit_code_3(onecard, tmp_path):
    with serving(tmp_path, models={"demo": "demo"}, flags=("--budget", "1MiB", "--device", "cpu"), env=FAKE) as small:
        done = onecard("load", "--url", small.url, "demo")
        assert done.returncode == 3, done.stderr
        assert "MiB" in done.stderr


def test_ps_watch_shows_page_after_page_until_interrupted(server, environment, tmp_path):
    command = [sys.executable, "-m", "server.cli", "ps", "--url", server.url, "--watch", "--every", "0.1"]
    env = {**environment, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stdout, stderr = present(process.stdout), present(process.stderr)
    try:
        heads = 0
        while heads < 3:
            line = stdout.readline()
            assert line, stderr.read()
            heads += line.startswith("NAME")
        os.kill(process.pid, signal.SIGINT)
        stdout.read()
        assert process.wait(10) == 0, stderr.read()
    finally:
        process.kill()
        process.wait()
        stdout.close()
        stderr.close()


def test_watch_and_json_do_not_go_together(onecard):
    assert onecard("ps", "--watch", "--json").returncode == 2


def status(*models: tuple[str, int | None, int | None], budget: int = 100 * MIB) -> dict:
    listed = [
        {"name": n, "predicted_bytes": predicted, "measured_bytes": measured} for n, predicted, measured in models
    ]
    reserved = sum(held_bytes(model) for model in listed)
    memory = {"device": "cpu", "budget_bytes": budget, "reserved_bytes": reserved, "other_bytes": 0}
    return {"memory": memory, "models": listed, "queue": []}


@pytest.mark.parametrize(
    ("models", "drawn"),
    [
        ([], "." * 40),
        ([("a", 50 * MIB, None)], "A" * 20 + "." * 20),
        ([("a", 60 * MIB, 50 * MIB), ("off", None, None), ("b", 25 * MIB, None)], "A" * 20 + "B" * 10 + "." * 10),
        ([("a", 1, None), ("b", 1, None)], "AB" + "." * 38),
        ([("a", 100 * MIB, None), ("b", 100 * MIB, None)], "A" * 40),
    ],
)
def test_the_bar_stacks_what_each_model_holds(models, drawn):
    (bar,) = bars(status(*models))
    assert bar.startswith(f"[{drawn}]")


def test_what_is_booked_for_conversations_is_in_the_bar_and_after_it():
    shown = status(("a", 50 * MIB, None))
    shown["memory"]["prefix_cache_reserved_bytes"] = 25 * MIB

    assert bars(shown) == [f"[{'A' * 20}{'~' * 10}{'.' * 10}] 50 MiB + 25 MiB of 100 MiB on cpu"]


def test_a_card_has_a_bar_for_either_memory():
    shown = status(("a", 50 * MIB, None), ("b", 25 * MIB, None), ("c", 5 * MIB, None))
    card = {"budget_bytes": 100 * MIB, "reserved_bytes": 75 * MIB}
    shown["memory"] |= {"device": "cuda", **card, "host": {"budget_bytes": 40 * MIB, "reserved_bytes": 15 * MIB}}
    shown["memory"]["prefix_cache_reserved_bytes"] = 20 * MIB
    a, b, holds_nothing_of_the_card = shown["models"]
    a["device"] = {"predicted_bytes": 50 * MIB, "measured_bytes": None}
    b["device"] = {"predicted_bytes": 25 * MIB, "measured_bytes": None}
    b["host"] = {"predicted_bytes": 9 * MIB, "measured_bytes": 10 * MIB}
    holds_nothing_of_the_card["host"] = {"predicted_bytes": 5 * MIB, "measured_bytes": None}

    assert bars(shown) == [
        f"[{'A' * 20}{'B' * 10}{'.' * 10}] 75 MiB of 100 MiB on cuda",
        f"[{'B' * 10}{'C' * 5}{'~' * 20}{'.' * 5}] 15 MiB + 20 MiB of 40 MiB of host memory",
    ]


def test_only_who_holds_memory_has_a_letter():
    assert marks_of(status(("a", 1, None), ("off", None, None), ("b", 1, 1))) == {"a": "A", "b": "B"}
