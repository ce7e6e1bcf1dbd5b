"""`onecard doctor`: each subject by a table of what was seen, and the command on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from demo import GGUF_PATH
from server.cli.doctor import machine, setup
from server.cli.doctor.command import examine
from server.cli.doctor.findings import Finding, told, worst
from server.cli.doctor.machine import Device, Place
from server.cli.doctor.setup import Port
from server.memory import gpu
from server.memory.gpu import Card, GpuMemory, Holder, Probes
from server.settings.config import Settings
from tests.cli.conftest import Onecard

GIB = 2**30
CPU = Device(Probes("auto", "cpu", card=False, hidden=False, llama=False, torch=False), 12 * GIB, None)
MEMORY = GpuMemory("NVIDIA GeForce RTX 4070 Ti", 12 * GIB, 11 * GIB)
GAME = Holder(4711, "game", 2 * GIB)
DESKTOP = Holder(900, "Xorg", 200 * 2**20)
WORKER = Holder(5000, "onecard-worker", 8 * GIB)
ON_CARD = Device(
    Probes("auto", "cuda", card=True, hidden=False, llama=True, torch=True),
    int(10.9 * GIB),
    Card(MEMORY, "575.51", ()),
)


def said(found: list[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.text) for one in found]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (CPU, [("ok", "cpu, 12 GiB for models")]),
        (ON_CARD, [("ok", "NVIDIA GeForce RTX 4070 Ti, driver 575.51, 10.9 of 12 GiB for models")]),
        (
            replace(CPU, error="device = 'cuda', but no. hint: device = 'cpu'"),
            [("problem", "device = 'cuda', but no.")],
        ),
        (
            replace(CPU, card=ON_CARD.card, probes=replace(CPU.probes, asked="cpu", card=True)),
            [("ok", "cpu, 12 GiB for models"), ("note", f"{MEMORY.name} is there and not used: device = 'cpu'")],
        ),
        (
            replace(CPU, card=ON_CARD.card, probes=replace(CPU.probes, hidden=True, card=True)),
            [
                ("ok", "cpu, 12 GiB for models"),
                ("note", f"{MEMORY.name} is there and not used: CUDA_VISIBLE_DEVICES hides it"),
            ],
        ),
    ],
)
def test_the_device_in_words(seen, expected):
    assert said(machine.device(seen)) == expected


@pytest.mark.parametrize(
    ("change", "levels"),
    [({}, []), ({"card": True}, ["warning", "warning"]), ({"card": True, "asked": "cpu"}, []),
     ({"card": True, "torch": True}, ["warning"])],
)  # fmt: skip
def test_a_card_that_is_there_and_unused_is_a_warning_with_a_remedy(change, levels):
    found = machine.unused_card(replace(CPU, probes=replace(CPU.probes, **change)))
    assert [one.level for one in found] == levels
    assert all(one.remedy for one in found)


@pytest.mark.parametrize(
    ("holders", "level", "named"),
    [
        ((), "ok", []),
        ((DESKTOP,), "note", ["Xorg (pid 900, 200 MiB)"]),
        ((DESKTOP, GAME), "warning", ["game (pid 4711, 2 GiB); Xorg"]),
        ((Holder(1, "?", None),), "note", ["? (pid 1)"]),
        ((WORKER,), "ok", []),
    ],
)
def test_who_else_holds_the_card(holders, level, named):
    (found,) = machine.holders(replace(ON_CARD, card=Card(MEMORY, "1", holders), own_pids=frozenset({5000})))
    assert found.level == level
    assert all(part in found.text for part in named)
    assert machine.holders(CPU) == []


BOTH = {"llama-cpp-python": machine.pinned_llama(), "transformers": "5.23", "torch": "2.13", "bitsandbytes": "0.50"}


@pytest.mark.parametrize(
    ("change", "levels", "told_of"),
    [
        ({}, ["ok", "ok"], "built for the CPU"),
        ({"llama-cpp-python": None}, ["note", "ok"], "GGUF files cannot be served"),
        ({"llama-cpp-python": "0.1"}, ["ok", "warning", "ok"], "is tested with"),
        ({"transformers": None, "torch": None}, ["note", "ok"], "model folders cannot be served"),
        ({"torch": None}, ["ok", "warning"], "without torch"),
        (dict.fromkeys(BOTH), ["problem"], "no engine"),
    ],
)
def test_engines_and_how_they_were_built(change, levels, told_of):
    found = machine.builds(CPU.probes, {**BOTH, **change})
    assert sorted(one.level for one in found) == sorted(levels)
    assert any(told_of in one.text for one in found)
    assert "built for CUDA" in machine.builds(ON_CARD.probes, BOTH)[0].text


PLACE = Place("models from the hub", Path("/x"), 100 * GIB, writable=True)


@pytest.mark.parametrize(
    ("change", "levels"),
    [
        ({}, ["ok"]),
        ({"free_bytes": None}, ["ok"]),
        ({"free_bytes": GIB}, ["warning"]),
        ({"writable": False}, ["problem"]),
        ({"half_bytes": GIB}, ["ok", "note"]),
    ],
)
def test_disks(change, levels):
    found = machine.places([replace(PLACE, **change)])
    assert [one.level for one in found] == levels
    assert all(one.remedy for one in found if one.level != "ok")


@pytest.mark.parametrize(("hard", "levels"), [(1024, []), (-1, []), (64, ["warning"])])
def test_limits(hard, levels):
    assert [one.level for one in machine.limits(hard, hard)] == levels


def test_a_half_download_is_counted(tmp_path, monkeypatch):
    blob = tmp_path / "models--a--b" / "blobs" / "abc.onecard.incomplete"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * 10_000)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (hub, *_) = machine.look_at_places()
    assert hub.half_bytes >= 10_000


STATUS = {"memory": {}, "models": [{"name": "a", "state": "ready", "pid": 7}, {"name": "b", "state": "unloaded"}]}


@pytest.mark.parametrize(
    ("seen", "level", "part"),
    [
        (Port("http://x:1", taken=False), "ok", "is free"),
        (Port("http://x:1", taken=True), "problem", "another program has http://x:1"),
        (Port("http://x:1", taken=True, wants_key=True), "note", "wants a key"),
        (Port("http://x:1", taken=True, status=STATUS), "ok", "2 models, loaded: a"),
    ],
)
def test_the_port(seen, level, part):
    (found,) = setup.port(seen)
    assert found.level == level
    assert part in found.text


@pytest.mark.parametrize(
    ("seen", "level", "part"),
    [
        (Port("http://x:1", taken=False), "problem", "nothing answers at http://x:1"),
        (Port("http://x:1", taken=True), "problem", "is no onecard"),
        (Port("http://x:1", taken=True, wants_key=True), "note", "wants a key"),
        (Port("http://x:1", taken=True, status=STATUS), "ok", "2 models, loaded: a"),
    ],
)
def test_the_server_that_the_shell_names(seen, level, part):
    (found,) = setup.named_server(seen)
    assert (found.subject, found.level, part in found.text) == ("server", level, True)


def test_only_workers_of_this_machine_are_known():
    here, there = (Port(url, taken=True, status=STATUS) for url in ("http://127.0.0.1:1", "http://llm.lan:1"))
    assert setup.pids_of(here, there) == {7}
    assert setup.pids_of(there) == frozenset()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:x"])
def test_onecard_url_that_leads_nowhere_is_a_problem(onecard, url):
    done = onecard("doctor", "--json", env={"ONECARD_URL": url})
    (found,) = [one for one in json.loads(done.stdout) if one["subject"] == "server"]
    assert (done.returncode, found["level"], "unset ONECARD_URL" in found["remedy"]) == (1, "problem", True)


def test_a_port_of_another_program_is_seen():
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.listen()
        settings = Settings.model_validate({"server": {"port": other.getsockname()[1]}})

        def hang_up() -> None:
            """As what speaks no HTTP does: on the knock, and on the question."""
            for _ in range(2):
                other.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        seen = setup.look_at_port(settings)
    assert seen == Port(seen.url, taken=True)


@pytest.mark.parametrize(
    ("environment", "n"),
    [
        ({}, 0),
        ({"HTTP_PROXY": "http://p:1"}, 1),
        ({"http_proxy": "http://p:1", "no_proxy": "127.0.0.1"}, 0),
        ({"all_proxy": "http://p:1"}, 1),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, 0),
    ],
)
def test_a_proxy_between_this_machine_and_itself(environment, n, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert len(setup.proxies()) == n


@pytest.mark.parametrize(
    ("config", "subject", "part"),
    [
        ("[server]\nprot = 1\n", "configuration", "prot"),
        ("not toml", "configuration", "TOML"),
        ("[server]\nhost = '0.0.0.0'\n", "configuration", "open to the network"),
        ("[server]\nallowed_hosts = ['llm.lan']\n", "configuration", "llm.lan"),
        ("[models.a]\npath = 'gone.gguf'\n", "models", "gone.gguf"),
        ("[models.a]\npath = 'junk.gguf'\n", "models", "a: "),
        ("[server]\napi_key_file = 'no-keys'\n", "configuration", "no-keys"),
    ],
)
def test_what_is_wrong_is_a_problem_and_the_rest_is_looked_at(config, subject, part, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "junk.gguf").write_bytes(b"no model" * 100)
    (tmp_path / "c.toml").write_text(config)
    found = examine(tmp_path / "c.toml")
    problems = [one for one in found if one.level == "problem" and one.subject == subject]
    assert any(part in one.text for one in problems)
    assert {"version", "device", "engines", "memory", "disk", "configuration", "port", "service"} <= {
        one.subject for one in found
    }


class Library:
    """NVIDIA's library as it would answer on a machine with a card, in its own names."""

    NVMLError = pynvml.NVMLError

    def __init__(self, processes: list[tuple[int, int | None]], *, tells_graphics: bool = True) -> None:
        self.tells_graphics = tells_graphics
        self.processes = [SimpleNamespace(pid=pid, usedGpuMemory=n_bytes) for pid, n_bytes in processes]
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, _handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=12 * GIB, free=11 * GIB)

    def nvmlDeviceGetName(self, _handle: int) -> str:  # noqa: N802
        return "RTX"

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return self.processes

    def nvmlDeviceGetGraphicsRunningProcesses(self, _handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return self.processes[:1] if self.tells_graphics else self.refuse(_handle)

    def refuse(self, _handle: int) -> list[SimpleNamespace]:
        raise self.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "575.51"


@pytest.mark.parametrize("tells_graphics", [True, False], ids=["all", "no graphics, as under WSL"])
def test_what_the_driver_tells(monkeypatch, tells_graphics):
    library = Library([(os.getpid(), 5), (2**22 + 1, None)], tells_graphics=tells_graphics)
    assert all(hasattr(pynvml, name) for name in dir(library) if name.startswith("nvml")), "names of the real one"
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    card = asyncio.run(gpu.card())
    assert (card.driver, card.memory) == ("575.51", GpuMemory("RTX", 12 * GIB, 11 * GIB))
    mine, gone = card.holders or ()
    assert (mine.pid, mine.n_bytes, mine.name) == (os.getpid(), 5, Path("/proc/self/comm").read_text().strip())
    assert (gone.n_bytes, gone.name) == (None, "?")
    library.processes = []
    assert asyncio.run(gpu.card()).holders == ()
    monkeypatch.setattr(library, "nvmlDeviceGetGraphicsRunningProcesses", library.refuse)
    monkeypatch.setattr(library, "nvmlDeviceGetComputeRunningProcesses", library.refuse)
    assert asyncio.run(gpu.card()).holders is None
    assert library.open == 0


def test_models_of_folders_are_looked_at_too(tmp_path):
    (tmp_path / "lies.gguf").symlink_to(GGUF_PATH)
    settings = Settings.model_validate({"server": {"models_dirs": [str(tmp_path), str(tmp_path / "gone")]}})
    found = setup.models(settings)
    assert any(one.level == "ok" and one.text.startswith("lies: ") for one in found)
    assert any(one.level == "warning" and "gone" in one.text for one in found)


def test_the_worst_decides_and_a_hint_is_the_remedy():
    assert worst([]) == "ok"
    assert worst([told("x", "note", "a"), told("x", "warning", "b"), told("x", "ok", "c")]) == "warning"
    assert told("x", "problem", "it is so. hint: do\nthat") == Finding("x", "problem", "it is so.", "do that")


def test_the_command_and_its_exit_codes(onecard: Onecard, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    env = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    done = onecard("doctor", "--json", env={**env, "ONECARD_SERVER__PORT": "9"})
    assert (done.returncode, done.stderr) == (0, "")
    assert {"subject", "level", "text", "remedy"} == set(json.loads(done.stdout)[0])
    assert sorted(tmp_path.rglob("*")) == before, "nothing is made"
    (tmp_path / "c.toml").write_text(
        "[models.a]\npath = 'x\x1b[31m.gguf'\n".replace("\x1b", "\\u001b").replace("'", '"')
    )
    wrong = onecard("doctor", "--config", "c.toml", env=env)
    assert wrong.returncode == 1
    assert "problem  models" in wrong.stdout
    assert "\x1b" not in wrong.stdout
