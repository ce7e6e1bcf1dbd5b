"""`onecard serve`: what it prints, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from server.settings.builtin import BUILT_IN, SERVED
from tests.cli.conftest import FAKE, INSTALLED
from tests.e2e.server import serving, until
from tests.embeddings.models import minilm, reranker
from tests.present import present


def test_it_prints_the_url_the_models_and_requests_to_copy(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--port", "0"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    first, *models = [present(process.stdout).readline() for _ in range(1 + len(INSTALLED))]
    url = present(re.fullmatch(r"onecard \S+ serves (http://127.0.0.1:\d+)/v1\n", first))[1]
    assert [line.split()[:2] for line in models] == [[name, "unloaded"] for name in INSTALLED]
    notes = list(iter(present(process.stdout).readline, "\n"))
    assert [note.split()[4] for note in notes] == [name for name in SERVED if name not in INSTALLED]
    curl, empty, *client = [present(process.stdout).readline() for _ in range(4)]
    assert (empty, json.dumps({"model": INSTALLED[0]})[1:-1] in curl) == ("\n", True)
    answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True)
    assert "data: [DONE]" in answer.stdout
    snippet = "\n".join(line.strip() for line in client)
    answer = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    assert answer.stdout == f"echo: {BUILT_IN[INSTALLED[0]].question}\n"
    assert url in snippet
    process.terminate()
    assert process.wait(20) == 0
    present(process.stdout).close()


def test_models_that_cannot_be_served_stop_no_other_and_are_named_at_start(environment, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    (tmp_path / "c.toml").write_text(
        "[models.broken]\npath = 'broken.gguf'\n[models.gone]\npath = 'gone.gguf'\n[models.good]\npath = 'demo'\n"
    )
    with _started(environment, tmp_path, "--config", "c.toml") as (process, url):
        lines = [present(process.stdout).readline() for _ in range(7)]
        assert ["(unusable)" in line for line in lines[:3]] == [True, True, False]
        assert lines[3].startswith("  warning: broken: ")
        assert lines[4] == f"  warning: gone: there is no file or folder {tmp_path}/gone.gguf\n"
        assert '"model": "good"' in lines[6]
        assert _chat(url, "good") == (200, None)
        for name in ("broken", "gone"):
            status, error = _chat(url, name)
            assert (status, error["code"]) == (503, "load_failed")
        assert "there is no file or folder gone.gguf" in error["message"]
        done = subprocess.run(
            [sys.executable, "-m", "server.cli", "ps", "--url", url],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert [line.split()[1:3] for line in done.stdout.splitlines() if "(unusable)" in line] == [
            ["unloaded", "(unusable)"]
        ] * 2
        assert "gone: there is no file or folder" in done.stdout
        with urllib.request.urlopen(f"{url}/models", timeout=20) as answer:
            told = {model["id"]: model["unusable"] for model in json.loads(answer.read())["data"]}
        assert told["good"] is None
        assert told["gone"] == f"there is no file or folder {tmp_path}/gone.gguf"
    said = (tmp_path / "log").read_text()
    assert 'unusable model="broken"' in said
    assert 'unusable model="gone"' in said


def test_the_request_to_copy_is_one_that_the_model_answers(environment, tmp_path):
    vectors, scores = minilm(), reranker(tmp_path / "ranker", n_types=1)
    for models, said in (
        (
            {"ranker": scores, "vectors": vectors, "chat": "demo"},
            ["data: [DONE]", "echo: What is the capital of France?"],
        ),
        ({"ranker": scores, "vectors": vectors}, ['"embedding":', "[30.0, "]),
        ({"ranker": scores}, ['"relevance_score":']),
    ):
        flags = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
        with _started(environment, tmp_path, *flags) as (process, _):
            lines = [present(process.stdout).readline().strip() for _ in range(2 + len(models))]
            answers = [subprocess.run(lines[-1], shell=True, capture_output=True, text=True, check=True).stdout]
            assert present(process.stdout).readline() == "\n"
            if len(said) == 2:
                snippet = "\n".join(process.stdout.readline().strip() for _ in range(2))
                done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
                answers.append(done.stdout)
        for answer, part in zip(answers, said, strict=True):
            assert part in answer


def test_a_budget_that_no_model_fits_is_said_at_start(environment, tmp_path):
    with _started(environment, tmp_path, "--budget", "8MiB") as (process, _):
        told = [present(process.stdout).readline() for _ in range(1 + 2 * len(INSTALLED))][len(INSTALLED) :]
        for name, line in zip(INSTALLED, told[:-1], strict=True):
            assert re.match(rf"  warning: {name}: .*8 MiB usable", line)
        assert told[-1] == "  warning: no model can be served\n"
    assert 'unusable model="demo"' in (tmp_path / "log").read_text()


@contextlib.contextmanager
def _started(environment, folder, *flags):
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", *flags]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            yield process, present(re.search(r"http://\S+/v1", present(process.stdout).readline()))[0]
        finally:
            process.terminate()
            assert process.wait(20) == 0


def _chat(url, model):
    """Status and error of one question."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, None
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())["error"]


def test_a_port_in_use_is_a_sentence_with_a_hint(onecard):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = onecard("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert re.fullmatch(r"onecard: 127.0.0.1:\d+ is in use. hint: .*--port 0 takes a free port\n", done.stderr)


def test_a_public_address_needs_a_key_or_the_operators_word(onecard, tmp_path):
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        done = onecard("serve", "--host", host, "--port", "0")
        assert done.returncode == 2
        assert "there is no key. hint: --api-key-file FILE, or --allow-public" in done.stderr
    models = {"demo": "demo"}
    with serving(tmp_path, models=models, flags=("--host", "0.0.0.0", "--allow-public"), env=FAKE) as server:
        assert server.get("/health")


def test_localhost_is_both_loopback_addresses(environment, tmp_path):
    with _started(environment, tmp_path, "--host", "localhost") as (process, url):
        port = int(url.removesuffix("/v1").rsplit(":", 1)[1])
        note = [present(process.stdout).readline() for _ in range(1 + len(INSTALLED))][-1]
        assert url == f"http://localhost:{port}/v1"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        if _has_ipv6_loopback():
            assert note == f"  127.0.0.1 and ::1 both listen on port {port}\n"
            socket.create_connection(("::1", port), timeout=5).close()
        else:
            assert "this machine has no IPv6 loopback" in note


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_where_another_program_has_the_ipv6_loopback_the_other_one_is_served_and_that_is_said(environment, tmp_path):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with _started(environment, tmp_path, "--host", "localhost", "--port", str(port)) as (process, _):
            note = [present(process.stdout).readline() for _ in range(1 + len(INSTALLED))][-1]
            assert note.startswith(f"  warning: another program has [::1]:{port}")
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def _has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", ["llm.home.lan", "*.home.lan", "onecard", "10.0.0.7"])
def test_other_names_need_a_key(onecard, name):
    done = onecard("serve", "--allowed-host", name, "--port", "0")
    assert done.returncode == 2
    assert f"server.allowed_hosts names {name}, and there is no key" in done.stderr


@pytest.mark.parametrize("name", ["*", "http://llm.home.lan", "llm.home.lan:80", "a b", "*lan", "a..b"])
def test_a_name_that_no_host_header_has_is_a_sentence(onecard, name):
    done = onecard("serve", "--allowed-host", name, "--admin-key", "k", "--port", "0")
    assert done.returncode == 2
    assert "a host looks like llm.home.lan, without scheme and port" in done.stderr


def test_a_name_of_the_network_is_answered_with_a_key(tmp_path):
    flags = ("--allowed-host", "*.home.lan", "--admin-key", "sesame-4711")
    with serving(tmp_path, models={"demo": "demo"}, flags=flags, env=FAKE) as server:
        request = urllib.request.Request(f"{server.url}/v1/models", headers={"x-api-key": "sesame-4711"})
        request.add_header("host", "llm.home.lan:8080")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
        request.add_header("host", "evil.example")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        with refused.value as answer:
            assert answer.code == 403
            assert "--allowed-host evil.example" in json.loads(answer.read())["error"]["message"]
        assert server.stop() == 0
        assert "sesame" not in present(server.process.stdout).read() + server.log.read_text()


def test_a_host_that_is_not_ours_is_a_sentence(onecard):
    done = onecard("serve", "--host", "192.0.2.1", "--port", "0", "--allow-public")
    assert done.returncode == 1
    assert "192.0.2.1:0 cannot be opened: Cannot assign requested address" in done.stderr


def test_a_device_that_is_not_there_is_a_sentence(onecard):
    done = onecard("serve", "--port", "0", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    if done.returncode == 0:
        pytest.skip("this machine has a card")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("onecard: ")


def test_keys_come_from_a_file_and_stay_out_of_every_output(tmp_path):
    file = tmp_path / "keys"
    file.write_text("sesame-open-4711\n")
    file.chmod(0o600)
    with serving(tmp_path, models={"demo": "demo"}, flags=("--api-key-file", str(file)), env=FAKE) as server:
        request = urllib.request.Request(f"{server.url}/v1/models")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 401
        refused.value.close()
        request.add_header("Authorization", "Bearer sesame-open-4711")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        assert server.stop() == 0
        assert "sesame" not in present(server.process.stdout).read() + server.log.read_text()


def test_the_log_can_be_json(tmp_path):
    with serving(tmp_path, models={"demo": "demo"}, flags=("--log-format", "json"), env=FAKE) as server:
        server.get("/health")
        server.get("/v1/models")
        server.stop()
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {"time", "level", "logger", "event"} <= set.intersection(*(set(line) for line in lines))
    assert any(line["event"] == "ready" and line["url"] == server.url for line in lines)


def test_too_few_files_are_said_at_start(environment, tmp_path):
    for limit, said in (
        (16, "may open 16 files, and needs 32 at least. hint: ulimit -n 1024"),
        (64, "may open 64 files"),
    ):
        command = ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", sys.executable, "-m", "server.cli", "serve"]
        with subprocess.Popen(
            [*command, "--port", "0"],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            lines = iter(present(process.stdout).readline, "")
            assert any(said in line for line in lines)
            if limit > 16:
                process.terminate()
            assert process.wait(20) == (1 if limit == 16 else 0)


def test_more_clients_than_files_wait_and_are_all_answered(environment, tmp_path):
    """asyncio would report every accept that fails, thousands of times a second, and serve no client meanwhile."""
    command = ["bash", "-c", 'ulimit -n 48; exec "$@"', "-", sys.executable, "-m", "server.cli", "serve", "--port", "0"]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            port = int(present(process.stdout).readline().removesuffix("/v1\n").rsplit(":", 1)[1])
            request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(80)]
            until(lambda: "connections_wait" in log.read_text(), within_s=20, what="no file is left for a connection")
            for connection in idle:
                connection.sendall(request)
            for connection in idle:
                assert connection.recv(16).startswith(b"HTTP/1.1 200")
                connection.close()
        finally:
            process.terminate()
            assert process.wait(20) == 0
    said = log.read_text()
    assert "Traceback" not in said
    assert said.count("connections_wait") == 1


def test_a_stream_imports_nothing_when_it_begins():
    """An import opens a file, and under load there may be none left."""
    program = (
        "import server.routes.sse, sys, anyio, asyncio; before = set(sys.modules)\n"
        "async def stream():\n"
        "    async with anyio.create_task_group(): await anyio.sleep(0)\n"
        "asyncio.run(stream()); print([name for name in sys.modules if name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_as_many_files_as_allowed_may_be_open(environment):
    def limit_of(process: subprocess.Popen) -> int:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        return int(present(re.search(r"Max open files +(\d+)", limits))[1])

    command = [
        "bash",
        "-c",
        'ulimit -S -n 128; exec "$@"',
        "-",
        sys.executable,
        "-m",
        "server.cli",
        "serve",
        "--port=0",
    ]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        present(process.stdout).readline()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert limit_of(process) == min(hard, 65_536)
        process.terminate()
        assert process.wait(20) == 0
