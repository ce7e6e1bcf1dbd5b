"""How `onecard serve` ends: by a signal, by its stdin, and what becomes of streams that run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.cli.conftest import FAKE
from tests.e2e.server import serving, until
from tests.present import present


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_lets_a_running_stream_finish(tmp_path, number):
    with serving(tmp_path, models={"demo": "demo"}, env=FAKE) as server:
        stream = _stream(server, "!slow 20 40")
        next(stream)
        server.process.send_signal(number)
        refused = _refused_while_draining(server)
        texts = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(texts).split()[-1] == "39"
        assert refused == 503
        assert server.process.wait(10) == 0
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGQUIT, 0)])
@pytest.mark.parametrize("module", ["typer", "uvicorn", "server.pool.pool"])
def test_a_signal_while_it_starts_ends_it_without_a_traceback(environment, tmp_path, number, code, module):
    program = (
        "import os, sys; from server.cli import main\n"
        f"told = lambda event, args: event == 'import' and args[0] == {module!r} and os.kill(os.getpid(), {number:d})\n"
        "sys.argv = ['onecard', 'serve', '--port', '0']; sys.addaudithook(told); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_who_asks_by_a_signal_is_told_the_state_in_the_log_and_nohup_is_obeyed(environment, tmp_path):
    command = ["nohup", sys.executable, "-m", "server.cli", "serve", "--port", "0"]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert "serves" in present(process.stdout).readline()
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        until(lambda: log.read_text().count("status model=demo state=unloaded") == 2, within_s=10, what="it is told")
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0


def test_the_grace_ends_with_an_error_in_the_stream(tmp_path):
    env = {**FAKE, "ONECARD_SERVER__DRAIN_S": "0.3"}
    with serving(tmp_path, models={"demo": "demo"}, env=env) as server:
        stream = _stream(server, "!slow 50 1000")
        next(stream)
        began = time.monotonic()
        server.process.terminate()
        with pytest.raises(Exception, match="shutting down"):
            list(stream)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 20


def test_a_second_signal_ends_it_now_and_its_workers_too(tmp_path):
    with serving(tmp_path, models={"demo": "demo"}, env=FAKE) as server:
        stream = _stream(server, "!slow 100 1000")
        next(stream)
        workers = server.workers()
        assert workers
        server.process.terminate()
        until(lambda: "draining" in server.log.read_text(), within_s=5, what="the drain begins")
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10, "the stream alone takes 100 s, the grace 30"
        for worker in workers:
            worker.wait(5)


def test_it_ends_when_its_stdin_ends_where_asked_to(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--exit-with-stdin"],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert "serves" in present(process.stdout).readline()
    present(process.stdin).close()
    assert process.wait(20) == 0
    present(process.stdout).close()


def _stream(server, prompt):
    messages = [{"role": "user", "content": prompt}]
    chunks = server.client().chat.completions.create(model="demo", messages=messages, stream=True)
    return (chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)


def _refused_while_draining(server):
    """Status of a new request once the drain has begun."""
    until(lambda: "draining" in server.log.read_text(), within_s=5, what="the drain begins")
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.headers["connection"] == "close"
    return refused.value.code
