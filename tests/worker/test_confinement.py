"""What a worker may see of its server, and that it never outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from backends.border.child import environment
from backends.border.wire import FrameEncoder
from backends.machine.crash_reason import clean, essence
from tests.specs import spec_of
from tests.worker.conftest import Starter, ends, process_file
from tests.worker.parent import started

# Orphans

PARENT = """
import asyncio, os, sys
from tests.specs import spec_of
from backends.border.worker import Worker

class Ear:
    def on_progress(self, worker, fraction): pass
    def on_step(self, worker, step): pass
    def on_exit(self, worker, how): pass
    def on_ready(self, worker, ready):
        print(worker.pid, flush=True)

async def main():
    workers = [Worker(spec_of(f"m{i}", "gguf", sys.argv[1], 512, 1), Ear()) for i in range(2)]
    for worker in workers:
        await worker.start()
    await asyncio.Event().wait()  # until it is killed

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
async def test_workers_vanish_when_the_server_is_killed(tmp_path: Path, stopped: bool) -> None:
    env = {**os.environ, "ONECARD_TEST_ENGINE": "tests.fakes.engine:load"}
    parent = started(PARENT, str(tmp_path / "x.gguf"), env=env)
    assert parent.stdout is not None
    try:
        pids = [int(await asyncio.wait_for(asyncio.to_thread(parent.stdout.readline), 60)) for _ in range(2)]
        if stopped:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
    finally:
        parent.kill()
        parent.communicate()

    assert all([await asyncio.to_thread(ends, pid, within_s=30) for pid in pids]), "workers outlive the server"


# What it may see


def test_environment_holds_no_secrets() -> None:
    kept = environment(
        {
            "PATH": "/bin",
            "HF_TOKEN": "hf_x",
            "ONECARD_SERVER__API_KEYS": "k",
            "OPENAI_API_KEY": "sk",
            "AWS_SECRET_ACCESS_KEY": "x",
            "CUDA_VISIBLE_DEVICES": "0",
            "ONECARD_TEST_ENGINE": "e",
            "LC_ALL": "C",
            "PYTHONPATH": "relative:/absolute",
            "PYTHONSTARTUP": "/evil.py",
            "LD_PRELOAD": "/evil.so",
        }
    )
    ours = {"PYTHONPATH", "OPENBLAS_NUM_THREADS", "GOMP_SPINCOUNT", "GGML_NO_BACKTRACE", "CUDA_DEVICE_ORDER"}
    assert set(kept) == {"PATH", "CUDA_VISIBLE_DEVICES", "ONECARD_TEST_ENGINE", "LC_ALL", *ours}
    assert kept["PYTHONPATH"].split(":")[0] == "/absolute"
    assert "relative" not in kept["PYTHONPATH"].split(":")


@pytest.mark.parametrize("told", [{}, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}])
def test_cards_are_counted_as_the_driver_counts_them(told: dict[str, str]) -> None:
    """Their memory is read through NVML, which goes by bus: CUDA's own order would be of another card's memory."""
    assert environment(told)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("told", "seen"), [(None, "0"), ("1", "1"), (" 2,0", "2"), ("GPU-a,GPU-b", "GPU-a"), ("", ""), ("-1", "-1")]
)
def test_a_worker_sees_the_card_alone_whose_memory_is_in_the_ledger(told: str | None, seen: str) -> None:
    inherited = {} if told is None else {"CUDA_VISIBLE_DEVICES": told}
    assert environment(inherited)["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize("told", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_how_long_threads_wait_awake_is_the_operators_to_say(told: dict[str, str]) -> None:
    kept = environment(told)
    assert {name: kept.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in kept} == told


async def test_folder_the_server_runs_in_is_not_imported_from(
    start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "here"
    trap.mkdir()
    for module in ("msgspec", "argparse", "backends"):
        (trap / f"{module}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(trap)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    _, ear = await start()
    assert ear.ready is not None


async def test_worker_has_its_own_session_and_leaves_no_core(start: Starter) -> None:
    worker, _ = await start()
    assert worker.pid is not None
    assert os.getsid(worker.pid) == worker.pid
    limits = process_file(worker.pid, "limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


def test_essence_is_the_last_telling_line_without_places() -> None:
    lines = ["loading", "/home/u/llama.cpp/ggml.c:12: GGML_ASSERT(ok) failed", "[0x7f3a11] frame", "bye\x1b[0m"]
    assert essence(lines) == "llama.cpp found that ok does not hold (ggml.c:12)"
    assert essence(["all is well"]) == ""
    assert len(clean("x" * 10_000)) < 300


@pytest.mark.parametrize("loading", [False, True])
def test_worker_leaves_when_its_socket_closes_although_the_parent_lives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loading: bool
) -> None:
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "tests.fakes.engine:load")
    path = tmp_path / "model.gguf"
    Path(f"{path}.fake").write_text("slow 60")
    ours, theirs = socket.socketpair()
    arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "backends.border.worker_main", *arguments],
        pass_fds=(theirs.fileno(),),
        env=environment(os.environ),
    )
    theirs.close()
    if loading:
        ours.sendall(FrameEncoder().frame(spec_of("m", "gguf", str(path), 512, 4)))
        assert ours.recv(4)  # the first word about its progress
    ours.close()

    assert process.wait(20) == 0
