"""`onecard run`: one question, a chat, with a running server or its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from demo import GGUF_PATH
from server.settings.builtin import BUILT_IN
from tests.cli.terminal import Terminal
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


def test_words_need_no_quotes(onecard, server):
    done = onecard("run", "--url", server.url, "demo", "what", "is", "--no-think", "this?", "--temperature", "0")
    assert (done.returncode, done.stdout) == (0, "echo: what is this?\n")


def test_flags_are_fields_of_the_request(onecard, server, tmp_path):
    (tmp_path / "notes.md").write_text("a note")
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    done = onecard("run", "--url", server.url, "demo", "--file", "notes.md", "--keep-alive", "5m", "--verbose", "so?")
    assert (done.returncode, done.stdout) == (0, "echo: notes.md:\n```\na note\n```\n\nso?\n")
    assert "answer: " in done.stderr
    seen = onecard("run", "--url", server.url, "demo", "--image", "cat.png", "what is it?")
    assert (seen.returncode, "no parts of type image" in seen.stderr) == (1, True)


def test_a_wrong_flag_is_a_sentence_before_anything_is_started(onecard):
    for flags, said in (
        (["--temperature", "9"], "Invalid 'temperature'"),
        (["--temperature", "hot"], "expected a decimal"),
        (["--format", "xml"], "'xml' is neither json nor a file"),
        (["--keep-alive", "soon"], "keep_alive"),
        (["--image", "none.png"], "none.png: there is no such file"),
    ):
        done = onecard("run", *flags, "demo", "hello", env={"ONECARD_SERVER__PORT": _closed_port()})
        assert (done.returncode, done.stdout) == (1 if "none.png" in flags else 2, "")
        assert done.stderr.startswith("onecard: ")
        assert said in done.stderr


def test_without_a_model_the_only_one_is_asked(onecard, server):
    assert onecard("run", "--url", server.url, stdin="hello").stdout == "echo: hello\n"


def test_what_is_piped_is_text(environment, server, tmp_path):
    command = [sys.executable, "-m", "server.cli", "run", "--url", server.url, "demo"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, input=b"caf\xe9", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        b"onecard: stdin is no text in UTF-8. hint: --image FILE sends an image, --audio FILE a sound\n",
    )


def test_words_that_are_no_text_are_a_sentence(environment, server, tmp_path):
    for words in (["demo", b"caf\xe9"], [b"caf\xe9", "hello"]):
        command = [sys.executable, "-m", "server.cli", "run", "--url", server.url, *words]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (2, False)


def test_a_pipe_needs_no_line_editor(onecard, server):
    done = onecard("run", "--url", server.url, "demo", "hello", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.stdout == "echo: hello\n"
    assert "server.cli.run" in done.stderr
    for unneeded in ("prompt_toolkit", "rich.progress", "server.schemas.chat"):
        assert unneeded not in done.stderr


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
    assert neither.returncode == 2
    assert f"is neither a model ({', '.join(BUILT_IN)}) nor a file" in neither.stderr
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
