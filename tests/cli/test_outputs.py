"""Whatever cannot be written, a command ends with one sentence and an exit code, never with a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo import GGUF_PATH
from server.cli.app import command
from server.cli.console import EXIT_CODES, ExitCode
from server.cli.ps import columns_for, row, table_of
from tests import warm
from tests.cli.conftest import Onecard
from tests.present import present

FULL = Path("/dev/full")
WRITES_STDOUT = {
    "help": ["--help"],
    "version": ["--version"],
    "a command's help": ["serve", "--help"],
    "serve": ["serve", "--port", "0"],
    "run": ["run", "demo", "hello", "--url", "URL"],
    "ps": ["ps", "--url", "URL"],
    "ps --json": ["ps", "--json", "--url", "URL"],
    "load": ["load", "demo", "--url", "URL"],
    "unload": ["unload", "demo", "--url", "URL"],
    "fit": ["fit", "demo"],
    "bench": ["bench", "demo", "--url", "URL", "--no-bare", "--rounds", "1", "--parallel", "1", "--generate", "2"],
    "list": ["list"],
    "list --json": ["list", "--json"],
    "config check": ["config", "check"],
    "config schema": ["config", "schema"],
    "config show": ["config", "show"],
    "show": ["show", "demo"],
    "show --json": ["show", "demo", "--json"],
    "connect": ["connect", "codex", "--url", "URL"],
    "doctor": ["doctor"],
    "usage": ["usage", "--url", "URL"],
    "doctor --json": ["doctor", "--json"],
    "quantize": ["quantize", str(GGUF_PATH), "--to", "Q8_0", "--requantize", "--dry-run"],
}


def test_every_command_is_tried():
    of: Any = command()
    leaves = {name for name, one in of.commands.items() if not hasattr(one, "commands")}
    groups = {name: one.commands for name, one in of.commands.items() if hasattr(one, "commands")}
    leaves |= {f"{group} {name}" for group, commands in groups.items() for name in commands}
    assert leaves - {" ".join(words[:2]) for words in WRITES_STDOUT.values()} - {
        words[0] for words in WRITES_STDOUT.values()
    } == {
        *("config init", "pull", "search", "rm"),
        *("service install", "service uninstall", "logs"),
        *("config reload", "transcribe", "draw", "batch", "lend", "train"),
        *("cluster up", "cluster status", "cluster down"),
    }, "it writes a file alone, or needs a hub, systemd or a server: see the tests of its own room"


@pytest.mark.parametrize("arguments", WRITES_STDOUT.values(), ids=WRITES_STDOUT.keys())
def test_a_full_disk_behind_stdout_is_a_sentence(arguments, environment, server, tmp_path):
    words = [server.url if word == "URL" else word for word in arguments]
    with FULL.open("w") as full:
        child = warm.popen(
            "server.cli",
            words,
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    with present(child.stderr) as pipe:
        told = pipe.read()
    assert child.wait(60) == ExitCode.ERROR
    assert told.splitlines()[-1] == "onecard: standard output cannot be written: the disk is full"
    assert "Traceback" not in told
    assert "Exception ignored" not in told


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_files_harm_nothing(closed, environment, tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m server.cli config check {closed}>&-"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_stderr_leaves_the_exit_code(environment, tmp_path):
    with FULL.open("w") as full:
        command_line = [sys.executable, "-m", "server.cli", "ps", "--url", "http://127.0.0.1:9"]
        done = subprocess.run(command_line, env=environment, cwd=tmp_path, stderr=full, timeout=60, check=False)
    assert done.returncode == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["quantize", str(GGUF_PATH), "--to", "Q8_0", "--requantize", "-o", "a-file"], "a-file"),
        (["quantize", str(GGUF_PATH), "--to", "Q8_0", "--requantize", "-o", "a-file/below"], "a-file/below"),
        (["quantize", str(GGUF_PATH), "--to", "Q8_0", "--requantize", "-o", "/proc/none"], "/proc/none"),
        (["bench", "demo", "--url", "URL", "--no-bare", "--rounds", "1", "--parallel", "1", "--generate", "2",
          "--svg", str(FULL)], f"{FULL}: the disk is full"),
        (["config", "init", "-o", "a-file/below.toml"], "a-file"),
        (["--install-completion", "bash"], "a-file"),
    ],
)  # fmt: skip
def test_a_place_that_takes_no_file_is_named(arguments, told, onecard: Onecard, server, tmp_path):
    (tmp_path / "a-file").write_text("x")
    words = [server.url if word == "URL" else word for word in arguments]
    home = {"HOME": str(tmp_path / "a-file"), "SHELL": "/bin/bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = onecard(*words, env=home)
    assert done.returncode in (ExitCode.ERROR, ExitCode.USAGE)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("onecard: ")
    assert told in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a-file").read_text() == "x"


def test_names_that_the_terminal_cannot_show_are_escaped(onecard: Onecard, tmp_path):
    (tmp_path / "c.toml").write_text(f"[models.\"модель\"]\npath = '{GGUF_PATH}'\n", encoding="utf-8")
    done = onecard("list", "--config", "c.toml", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "\\u043c" in done.stdout


NAME = "an-organisation/a-model-with-a-very-long-name-Instruct-2507:Q4_K_M"


def test_a_pipe_has_no_width_and_names_are_whole(onecard: Onecard, tmp_path, server):
    (tmp_path / "c.toml").write_text(f"[models.'{NAME}']\npath = '{GGUF_PATH}'\n")
    for arguments in (["list", "--config", "c.toml"], ["ps", "--url", server.url]):
        wide, narrow = (onecard(*arguments, env={"COLUMNS": columns}).stdout for columns in ("200", "20"))
        assert wide.count("\n") == narrow.count("\n"), "figures move, lines don't"
        assert wide.splitlines()[0].split() == narrow.splitlines()[0].split()
    assert NAME in onecard("list", "--config", "c.toml", env={"COLUMNS": "20"}).stdout.splitlines()[1]


@pytest.mark.parametrize("columns", [200, 100, 80, 60, 40, 20])
def test_columns_give_way_to_names(columns):
    rows = [["A chat", "ready", "5.9GiB/5.8GiB", "8192", "1/2", "43.1", "-", "9m30s"]]
    shown = columns_for(rows, columns)
    assert shown[0] == "NAME"
    widths = [max(len(title), len(cell)) for title, cell in zip(columns_for(rows, 999), rows[0], strict=True)]
    assert len(shown) == 8 or sum(widths) + 14 > columns, "nothing goes that has room"
    assert "STATE" in shown or columns < 20


@pytest.mark.parametrize("columns", range(20, 90))
def test_no_cell_of_a_table_is_cut_that_has_a_column(columns):
    model = {"name": "A chat", "state": "ready", "predicted_bytes": 6 << 30, "measured_bytes": 6 << 30, "parallel": 2}
    text = io.StringIO()
    Console(file=text, width=columns).print(table_of({"models": [model], "memory": {"device": "cpu"}}, columns))
    titles, cells = text.getvalue().splitlines()
    assert titles.split() == columns_for([["A A chat", *row(model, on_card=False)[1:]]], columns)
    assert cells.startswith("A A chat")


def test_every_exit_code_is_in_the_help(onecard: Onecard):
    told = " ".join(onecard("--help").stdout.split())
    assert EXIT_CODES in told
    assert all(f"{code.value} {code.meaning}" in told for code in ExitCode)
    assert "<bool>" not in told
    assert "--show-completion" in told
    for words in (["ps"], ["config", "show"], ["quantize"], ["serve"]):
        assert "<bool>" not in onecard(*words, "--help").stdout


def test_a_terminal_of_60_columns_shows_names(server, environment):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    command_line = [sys.executable, "-m", "server.cli", "ps", "--url", server.url]
    with subprocess.Popen(command_line, env={**kept, "TERM": "xterm"}, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError:  # the end of a pseudo-terminal
            pass
        assert process.wait(30) == 0
    os.close(ours)
    assert b"NAME" in shown
    assert b"demo" in shown
