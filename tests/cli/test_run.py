"""`onecard run`: one question, a chat, with a running server or its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from demo import GGUF_PATH
from tests.e2e.server import until
from tests.present import present


def test_one_question_is_answered_on_stdout(onecard, server):
    done = onecard("run", "--url", server.url, "demo", "hello there")
    assert (done.returncode, done.stdout, done.stderr) == (0, "echo: hello there\n", "")


def test_stdin_is_the_prompt_or_joins_it(onecard, server):
    assert onecard("run", "--url", server.url, "demo", stdin="from a pipe").stdout == "echo: from a pipe\n"
    assert onecard("run", "--url", server.url, "demo", "what is", stdin="this").stdout.split() == [
        "echo:",
        "what",
        "is",
        "this",
    ]


def test_nothing_to_ask_is_a_sentence(onecard):
    for arguments, stdin in ((["demo"], None), (["demo", ""], None), (["demo", " \n"], None), (["demo"], "\n")):
        done = onecard("run", *arguments, stdin=stdin)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("onecard: there is nothing to ask. hint: ")


def test_an_open_stdin_that_says_nothing_does_not_hang_it(environment, server, tmp_path):
    command = [sys.executable, "-m", "server.cli", "run", "--url", server.url, "demo", "hello"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert present(process.stdout).readline() == b"echo: hello\n"
        assert process.wait(10) == 0
        assert b"nothing came on stdin" in present(process.stderr).read()


def test_errors_have_their_exit_codes(onecard, server):
    unreachable = onecard("run", "--url", "http://127.0.0.1:9", "demo", "hi")
    assert unreachable.returncode == 4
    malformed = onecard("ps", "--url", "http://[")
    assert (malformed.returncode, malformed.stderr) == (
        2,
        "onecard: 'http://[' is no address. hint: http://127.0.0.1:8080\n",
    )
    unknown = onecard("run", "--url", server.url, "nonsense", "hi")
    assert (unknown.returncode, unknown.stderr) == (
        1,
        f"onecard: {server.url} has no model 'nonsense'. hint: it has demo\n",
    )
    typo = onecard("run", "--url", server.url, "Dmo", "hi")
    assert typo.stderr == f"onecard: {server.url} has no model 'Dmo'. hint: did you mean demo?\n"
    crashed = onecard("run", "--url", server.url, "demo", "!crash")
    assert crashed.returncode == 1
    assert crashed.stderr.startswith("onecard: ")
    refused = onecard("run", "--url", server.url, "demo", "!refuse too odd")
    assert refused.returncode == 1
    assert "too odd" in refused.stderr
    neither = onecard("run", "nonsense", "hi", env={"ONECARD_SERVER__PORT": _closed_port()})
    assert neither.returncode == 1
    assert "is neither a model (smollm2, demo) nor a file" in neither.stderr
    typo = onecard("run", "dmeo", "hi", env={"ONECARD_SERVER__PORT": _closed_port()})
    assert typo.stderr.endswith("hint: did you mean demo?\n")


@pytest.mark.parametrize("model", ["demo", str(GGUF_PATH)])
def test_without_a_server_it_starts_its_own_and_ends_it(onecard, model, tmp_path):
    done = onecard("run", model, "hello there", env={"ONECARD_SERVER__PORT": _closed_port()})
    assert (done.returncode, done.stdout) == (0, "echo: hello there\n")
    assert not _servers(tmp_path)


def test_its_own_server_takes_the_configured_key_and_none_goes_elsewhere(onecard, server):
    keyed = {"ONECARD_SERVER__API_KEYS": "sesame", "ONECARD_SERVER__PORT": _closed_port()}
    assert onecard("run", "demo", "hello", env=keyed).stdout == "echo: hello\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with ThreadPoolExecutor(1) as pool:
            request = pool.submit(_first_request, listener)
            onecard("ps", "--url", url, env=keyed)
            assert b"sesame" not in request.result()


def test_its_own_server_that_does_not_start_says_why(onecard, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    done = onecard("run", "./bad.gguf", "hello", env={"ONECARD_SERVER__PORT": _closed_port()})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_its_own_server_goes_when_it_is_killed(environment, tmp_path):
    env = {**environment, "ONECARD_SERVER__PORT": _closed_port()}
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "run", "demo", "!slow 50 1000"],
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert present(process.stdout).read(1)
    ours = _servers(tmp_path)
    assert ours
    process.kill()
    process.wait()
    present(process.stdout).close()
    until(lambda: not ours & _servers(tmp_path), within_s=40, what="the server ends")


def test_a_chat_remembers_stops_an_answer_and_ends(environment, server, tmp_path):
    with Terminal(["run", "--url", server.url, "demo"], environment, tmp_path) as terminal:
        terminal.expect("you")
        terminal.type("first words\n")
        terminal.expect("echo: first words")
        terminal.expect("you")
        terminal.type("!slow 20 5000\n")
        terminal.expect("1 2 3")
        terminal.type("\x03")
        terminal.expect("(stopped)")
        terminal.expect("you")
        terminal.type("!refuse this one\n")
        terminal.expect("this one")
        terminal.expect("you")
        terminal.type("still here\n")
        terminal.expect("echo: still here")
        terminal.expect("you")
        terminal.type("/exit\n")
        assert terminal.process.wait(10) == 0


def test_the_end_of_input_ends_the_chat(environment, server, tmp_path):
    with Terminal(["run", "--url", server.url, "demo"], environment, tmp_path) as terminal:
        terminal.expect("you")
        terminal.type("\x04")
        assert terminal.process.wait(10) == 0


def test_ctrl_c_ends_a_single_answer(environment, server, tmp_path):
    with Terminal(["run", "--url", server.url, "demo", "!slow 20 5000"], environment, tmp_path) as terminal:
        terminal.expect("1 2 3")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(10) == 130


class Terminal:
    """A command with a terminal of its own, as a person has it."""

    def __init__(self, arguments, environment, folder):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            env={**environment, "TERM": "dumb"},
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # The terminal becomes the controlling one, so that Ctrl-C typed there is a signal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text):
        os.write(self._master, text.encode())

    def expect(self, text, *, within_s=20):
        deadline = time.monotonic() + within_s
        while text not in self._seen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self._seen!r}"
            self._seen += os.read(self._master, 4096).decode(errors="replace")
        self._seen = self._seen.split(text, 1)[1]


def _first_request(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection:
        return connection.recv(65536)


def _closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def _servers(folder: Path) -> set[int]:
    """Servers that a `run` in this folder started, by pid: other tests start theirs beside it."""
    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "status", "cwd"]):
        ended = process.info["status"] == psutil.STATUS_ZOMBIE
        if "--exit-with-stdin" in (process.info["cmdline"] or []) and process.info["cwd"] == str(folder) and not ended:
            found.add(process.info["pid"])
    return found
