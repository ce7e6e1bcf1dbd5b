"""onecard and another server take turns under one client; the other program is one that the test brings along."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from bench import llama_server, peers
from demo import GGUF_PATH

PROGRAM = f"""#!{sys.executable}
import os, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if not given: sys.exit("version: 7")
parallel = int(given["--parallel"])
context = int(given["--ctx-size"]) // parallel
config = f'[models.bench]\\npath = "{{given["--model"]}}"\\ncontext = {{context}}\\nparallel = {{parallel}}\\n'
open(__file__ + ".toml", "w").write(config)
flags = ["--host", given["--host"], "--port", given["--port"], "--config", __file__ + ".toml"]
os.execv(sys.executable, [sys.executable, "-m", "server.cli", "serve", *flags])
"""
"""Takes llama-server's flags and serves with onecard."""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


@pytest.mark.engine
def test_both_servers_and_the_bare_loop_are_measured_in_one_run(program: Path) -> None:
    terms = peers.Terms(path=GGUF_PATH, rounds=2, n_prompt=16, n_generate=12, context=256, beside=0.1)
    said: list[str] = []
    figures = peers.measure(terms, program, say=said.append)
    assert len(said) == 2 * len(peers.STREAMS)
    for streams in ("1 stream", "8 streams"):
        for other in (peers.PEER, peers.BARE):
            middle, low, high = map(float, re.findall(r"[\d.]+", figures[f"{streams}, onecard / {other}"]))
            assert 0 < low <= middle <= high
        for side in (peers.OURS, peers.PEER):
            for what in ("tokens/s", "longest ITL ms", "TTFT p50 ms"):
                assert f"{streams}, {side}, {what}" in figures


def test_a_program_is_taken_where_it_is_named_or_on_the_path(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert llama_server.find(None) == llama_server.find(program) == program
    assert llama_server.version(program) == "version: 7"
    program.chmod(0o644)
    with pytest.raises(RuntimeError, match="is no program"):
        llama_server.find(program)


def test_a_server_that_ends_at_once_says_why(program: Path) -> None:
    program.write_text("#!/bin/sh\necho no such file >&2\nexit 1\n")
    with (
        pytest.raises(RuntimeError, match="no such file"),
        llama_server.running(program, GGUF_PATH, context=64, parallel=1),
    ):
        pass


def test_the_neighbour_computes_and_ends_with_the_block() -> None:
    with peers.neighbour(0.5) as process:
        assert process is not None
        stat = Path(f"/proc/{process.pid}/stat")
        deadline = time.monotonic() + 20
        while sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.monotonic() < deadline
    assert process.returncode is not None
    with peers.neighbour(0.0) as absent:
        assert absent is None
