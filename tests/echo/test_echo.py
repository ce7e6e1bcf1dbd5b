"""A kind of job that nothing in onecard knows gets what every other has: books, status, metrics, errors, cancelling."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import until
from tests.http.conftest import Answer, Server

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
BOUNDARY = "a-boundary"
TEXT = b"what is in the file"


def form(*parts: tuple[str, bytes, str], boundary: str = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    """A body of parts: the head behind `form-data; `, the content, further header lines."""
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n{more}\r\n".encode() + content + b"\r\n"
        for head, content, more in parts
    )
    return body + f"--{boundary}".encode() + end


MODEL = ('name="model"', b"parrot", "")
FILE = ('name="file"; filename="../etc/a.txt"', TEXT, "Content-Type: text/plain\r\n")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def started(folder: Path, cache: Path, canary: Path) -> Server:
    """Two models that echo and one that generates text, of which the budget holds one of each."""
    for name in ("parrot", "mynah"):
        (folder / f"{name}.echo").write_text(f"ECHO {60 * MIB}\n")
    models = {
        "parrot": {"path": str(folder / "parrot.echo"), "aliases": ["p"]},
        "mynah": {"path": str(folder / "mynah.echo"), "voices": 1, "shout": True},
        "canary": {"path": str(canary), "context": 256, "parallel": 1},
    }
    settings = {
        "models": models,
        "server": {"drain_s": 1, "max_upload_bytes": MIB},
        "memory": {"device": "cpu", "budget": "140MiB", "prefix_cache": 0},
        "scheduler": {"min_residency_s": 0},
    }
    env = {"ONECARD_BACKENDS": "tests.echo.backend:Echoes", "ONECARD_TEST_ENGINE": "", "XDG_CACHE_HOME": str(cache)}
    return Server(settings, folder / f"server-{os.urandom(4).hex()}.log", **env)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path, canary_path: Path) -> Iterator[Server]:
    running = started(tmp_path_factory.mktemp("echo"), cache, canary_path)
    yield running
    assert running.stop() == 0, running.log
    assert spooled(cache) == []


def spooled(cache: Path) -> list[str]:
    """Files of requests that lie on the disk."""
    return [path.name for path in cache.rglob("uploads/*/*") if path.name != "lock"]


def post(server: Server, body: bytes, *, boundary: str = BOUNDARY, path: str = "/v1/echo") -> Answer:
    return server.post(path, body, headers={"content-type": f"multipart/form-data; boundary={boundary}"})


def cli(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of `onecard` that knows the kind."""
    told = {**os.environ, "ONECARD_BACKENDS": "tests.echo.backend:Echoes", "ONECARD_TEST_ENGINE": "", **env}
    command = [sys.executable, "-m", "server.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=30, check=False)


def begun(server: Server, body: bytes, *, sent: int | None = None) -> socket.socket:
    """A connection on which a request was sent, or its beginning."""
    head = f"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n"
    connection = server.connect()
    connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body[:sent])
    return connection


def series(server: Server, model: str) -> dict[str, float]:
    """The samples of a model, by name and further label."""
    found = {}
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            if sample.labels.get("model_name") == model:
                others = [value for label, value in sample.labels.items() if label != "model_name"]
                found[":".join([sample.name, *others])] = sample.value
    return found


def test_a_file_goes_to_the_worker_and_comes_back(server: Server, cache: Path) -> None:
    answer = post(server, form(MODEL, FILE))

    digest = hashlib.sha256(TEXT).hexdigest()
    assert (answer.status, answer.json()) == (200, {"text": TEXT.decode(), "name": "a.txt", "sha256": digest})
    assert answer.headers["x-onecard-model"] == "parrot"
    assert spooled(cache) == []


def test_curl_sends_it_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    command = ["curl", "-sS", "-F", "model=p", "-F", f"file=@{tmp_path / 'a.txt'}", f"{server.url}/v1/echo"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout)["text"] == TEXT.decode()


def test_every_step_is_counted_whether_it_gave_something_or_not(server: Server) -> None:
    assert post(server, form(MODEL, FILE)).status == 200
    before = series(server, "parrot")["onecard_batch_sequences_count"]
    assert post(server, form(MODEL, FILE)).status == 200
    assert series(server, "parrot")["onecard_batch_sequences_count"] - before == math.ceil(len(TEXT) / 8)


def test_it_is_told_of_like_any_other_model(server: Server) -> None:
    assert post(server, form(MODEL, FILE)).status == 200
    listed = {model["id"]: model for model in server.get("/v1/models").json()["data"]}
    assert (listed["parrot"]["backend"], listed["parrot"]["capabilities"]) == ("echo", ["echo"])
    assert listed["parrot"]["context_length"] is None
    assert listed["mynah"]["capabilities"] == ["echo"]
    status = server.model("parrot")
    assert (status["state"], status["context"], status["parallel"], status["gpu_layers"]) == ("ready", None, 2, None)
    assert status["predicted_bytes"] == status["measured_bytes"] == 90 * MIB
    assert (status["parts"]["weights"], status["parts"]["voices"]) == (60 * MIB, 10 * MIB)
    assert status["facts"] == {"longest_bytes": 64 * 1024}
    assert server.model("canary")["facts"] == server.model("mynah")["facts"] == {}
    assert server.get("/props?model=parrot").json()["total_slots"] == 2
    counted = series(server, "parrot")
    assert counted["onecard_request_success_total:stop"] >= 1
    assert counted["onecard_e2e_request_latency_seconds_count"] >= 1
    assert counted["onecard_batch_sequences_count"] >= 1
    assert counted["onecard_prompt_tokens_total"] == counted["onecard_prefix_cache_queries_total"] == 0
    assert counted["onecard_model_memory_predicted_bytes:host:weights"] == 60 * MIB
    assert counted["onecard_model_memory_predicted_bytes:host:voices"] == 10 * MIB


def test_ps_and_fit_show_what_there_is(server: Server) -> None:
    assert post(server, form(MODEL, FILE)).status == 200
    shown = cli("ps", ONECARD_URL=server.url).stdout
    line = next(line for line in shown.splitlines() if "parrot" in line)
    assert re.search(r"ready +90 ?MiB/90 ?MiB +- +0/2", line), line
    assert "parrot: longest_bytes 65536" in shown
    capacity = server.get("/v1/capacity?model=parrot").json()
    assert (capacity["gives"], capacity["total_bytes"], capacity["fits"]) == ("echoes", 90 * MIB, True)
    assert capacity["parts"]["voices"] == 10 * MIB
    nothing = dict.fromkeys(["context", "parallel", "kv_type", "gpu_layers", "kv_tokens"])
    assert capacity["plan"] == {**nothing, "further": {"voices": 2}}
    assert capacity["alternatives"] == [{**nothing, "further": {"voices": 1}, "total_bytes": 85 * MIB, "speed": None}]
    assert server.get("/v1/capacity?model=mynah").json()["plan"]["further"] == {"voices": 1}


def test_fit_says_what_would_fit_instead(tmp_path: Path) -> None:
    (tmp_path / "macaw.echo").write_text(f"ECHO {60 * MIB}\n")
    config = tmp_path / "onecard.toml"
    config.write_text(f'[models.macaw]\npath = "{tmp_path}/macaw.echo"\nvoices = 8\n')
    told = cli("fit", "macaw", "--config", str(config), "--budget", "110MiB")
    assert told.returncode == 3
    sums = "weights 60 MiB + runtime 20 MiB + voices 40 MiB"
    assert f"120 MiB ({sums}) at voices 8, 110 MiB usable. hint: voices 1 fits" in told.stderr
    told = cli("fit", "macaw", "--config", str(config), "--budget", "130MiB")
    assert "macaw fits: voices 8" in told.stdout
    assert "fits too: voices 7: 115 MiB" in told.stdout


def test_its_keys_are_for_its_models_alone(tmp_path: Path, canary_path: Path) -> None:
    config = tmp_path / "onecard.toml"
    config.write_text(f'[models.canary]\npath = "{canary_path}"\nshout = true\n')
    told = cli("config", "check", "--config", str(config))
    assert told.returncode == 2
    assert f"{canary_path} is a GGUF file, and shout is for a file that echoes. hint: leave shout out" in told.stderr
    config.write_text(f'[models.canary]\npath = "{canary_path}"\nwhisper = true\n')
    assert "whisper" in cli("config", "check", "--config", str(config)).stderr


def test_its_metrics_count_its_events(server: Server) -> None:
    assert post(server, form(MODEL, FILE)).status == 200
    before = series(server, "parrot")
    assert post(server, form(MODEL, FILE)).status == 200
    assert server.post("/v1/echo/text", {"model": "parrot", "text": "\u00e4bc"}).status == 200
    added = {name: value - before.get(name, 0) for name, value in series(server, "parrot").items()}
    assert added["onecard_echoed_characters_total"] == len(TEXT) + 3
    assert (added["onecard_echo_file_bytes_count"], added["onecard_echo_file_bytes_sum"]) == (1, len(TEXT))
    assert (added["onecard_echo_file_bytes_bucket:16.0"], added["onecard_echo_file_bytes_bucket:1024.0"]) == (0, 1)
    assert series(server, "canary")["onecard_echoed_characters_total"] == 0


def test_its_json_surface_is_one_like_the_others(server: Server) -> None:
    answer = server.post("/v1/echo/text", {"model": "mynah", "text": "hello", "user": "a", "odd": 1})
    assert (answer.status, answer.json()) == (200, {"text": "HELLO"})
    assert answer.headers["x-onecard-ignored"] == "odd"
    refused = server.post("/v1/echo/text", {"model": "parrot", "text": "a", "language": "de"})
    assert (refused.status, refused.error["param"]) == (400, "language")
    assert server.post("/v1/echo/text", {"model": "parrot", "text": ""}).error["param"] == "text"
    assert post(server, form(MODEL, FILE), path="/v1/echo/text").status == 415
    described = server.get("/openapi.json").json()
    body = described["paths"]["/v1/echo/text"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = described["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert {"model", "text", "language", "user"} == {*fields}


def test_models_of_all_kinds_evict_each_other(server: Server) -> None:
    assert post(server, form(MODEL, FILE)).status == 200
    assert post(server, form(('name="model"', b"mynah", ""), FILE)).status == 200
    assert server.model("parrot")["state"] == "unloaded"
    said = server.post("/v1/completions", {"model": "canary", "prompt": "a", "max_tokens": 2})
    assert said.status == 200, said.body
    assert post(server, form(MODEL, FILE)).status == 200
    assert series(server, "mynah")["onecard_model_evictions_total:room"] >= 1


def test_other_kinds_of_jobs_are_refused_in_its_words(server: Server) -> None:
    assert post(server, form(MODEL, FILE)).status == 200
    chat = server.post("/v1/chat/completions", {"model": "parrot", "messages": [{"role": "user", "content": "a"}]})
    assert (chat.status, chat.error["param"]) == (400, "model")
    assert "'parrot' echoes files and writes no text. hint: name a model that generates text" in chat.error["message"]
    counted = server.post("/tokenize", {"model": "parrot", "content": "a"})
    assert "echoes files and has no tokens to count" in counted.error["message"]
    echo = post(server, form(('name="model"', b"canary", ""), FILE))
    assert "generates text and echoes no files" in echo.error["message"]


def file(content: bytes, more: str = "", name: str = "file") -> tuple[str, bytes, str]:
    return (f'name="{name}"; filename="a"', content, more)


BROKEN: dict[str, tuple[list[tuple[str, bytes, str]], dict[str, Any], int, str]] = {
    "no such model": ([('name="model"', b"unknown", ""), FILE], {}, 404, "model_not_found"),
    "no file": ([MODEL], {}, 400, "missing_required_parameter"),
    "a field instead of a file": ([MODEL, ('name="file"', TEXT, "")], {}, 400, "invalid_value"),
    "two files": ([MODEL, FILE, FILE], {}, 400, "invalid_value"),
    "a file in another field": ([MODEL, FILE, file(b"x", name="mask")], {}, 400, "unsupported_parameter"),
    "an empty file": ([MODEL, file(b"")], {}, 400, "invalid_value"),
    "a file that is called NUL": ([MODEL, ('name="file"; filename="\0"', TEXT, "")], {}, 400, "invalid_value"),
    "a name for a terminal": ([MODEL, ('name="file"; filename="a\x1b[2Jb"', TEXT, "")], {}, 400, "invalid_value"),
    "two models": ([MODEL, MODEL, FILE], {}, 400, "invalid_value"),
    "another sort of file": ([MODEL, file(b"x", "Content-Type: audio/wav\r\n")], {}, 400, "unsupported_media"),
    "what the engine cannot read": ([MODEL, file(b"\xff")], {}, 400, "unsupported_media"),
    "a file that is too large": ([MODEL, file(b"x" * (64 * 1024 + 1))], {}, 413, "request_too_large"),
    "fields that are too large": ([MODEL, FILE, ('name="a"', b"x" * MIB, "")], {}, 413, "request_too_large"),
    "a body that is too large": ([MODEL, file(b"x" * 2 * MIB)], {}, 413, "request_too_large"),
    "too many fields": ([('name="a"', b"", "")] * 65, {}, 400, "invalid_form"),
    "a part without a name": ([MODEL, ("", b"x", "")], {}, 400, "invalid_form"),
    "a header twice": ([MODEL, file(TEXT, 2 * "Content-Type: text/plain\r\n")], {}, 400, "invalid_form"),
    "base64": ([MODEL, file(TEXT, "Content-Transfer-Encoding: base64\r\n")], {}, 400, "invalid_form"),
    "a field that is no UTF-8": ([('name="model"', b"\xff", ""), FILE], {}, 400, "invalid_form"),
    "an end that is missing": ([MODEL, FILE], {"end": b""}, 400, "invalid_form"),
    "a boundary that is malformed": ([MODEL, FILE], {"end": b"x\r\n"}, 400, "invalid_form"),
    "another boundary": ([MODEL, FILE], {"boundary": "other"}, 400, "invalid_form"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_forms_are_refused_and_leave_nothing(server: Server, cache: Path, case: str) -> None:
    parts, how, status, code = BROKEN[case]
    answer = post(server, form(*parts, **how))
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    assert spooled(cache) == []
    assert "python_multipart" not in server.log


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        (f"multipart/form-data; boundary={'x' * 71}", 400),
        ('multipart/form-data; boundary="a b "', 400),
        ("multipart/mixed; boundary=a-boundary", 415),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
    ],
)
def test_only_a_form_with_a_boundary_is_read(server: Server, content_type: str, status: int) -> None:
    answer = server.post("/v1/echo", form(MODEL, FILE), headers={"content-type": content_type})
    assert answer.status == status, answer.body


def test_no_other_route_takes_a_form(server: Server) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert server.post("/v1/completions", form(MODEL, FILE), headers=headers).status == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
        {"content-encoding": "gzip"},
    ],
)
def test_foreign_pages_are_refused_before_the_body_is_read(server: Server, headers: dict[str, str]) -> None:
    said = {"host": "localhost", **headers, "content-type": "multipart/form-data; boundary=x", "content-length": "1000"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    with server.connect() as connection:
        connection.sendall(f"POST /v1/echo HTTP/1.1\r\n{lines}\r\n".encode())
        assert connection.recv(12) in (b"HTTP/1.1 403", b"HTTP/1.1 415")


def test_hanging_up_in_the_upload_leaves_nothing(server: Server, cache: Path) -> None:
    with begun(server, form(MODEL, file(b"x" * 50_000)), sent=40_000):
        until(lambda: len(spooled(cache)) == 1, 5)
    until(lambda: spooled(cache) == [], 5)


def test_hanging_up_cancels_the_job(server: Server, cache: Path) -> None:
    with begun(server, form(MODEL, ('name="delay_ms"', b"200", ""), file(b"x" * 800))):
        until(lambda: server.model("parrot")["busy"] == 1, 10)
    server.wait_idle()
    until(lambda: spooled(cache) == [], 5)
    assert series(server, "parrot")["onecard_request_success_total:abort"] >= 1


def test_a_worker_that_crashes_takes_its_jobs_alone(server: Server, cache: Path) -> None:
    answer = post(server, form(MODEL, file(b"!crash")))
    assert (answer.status, answer.error["code"]) == (500, "worker_crashed")
    assert spooled(cache) == []
    assert series(server, "parrot")["onecard_worker_crashes_total"] >= 1


def test_a_server_that_is_killed_leaves_nothing_for_long(tmp_path: Path, canary_path: Path) -> None:
    cache = tmp_path / "cache"
    killed = started(tmp_path, cache, canary_path)
    with begun(killed, form(MODEL, file(b"x" * 50_000)), sent=40_000):
        until(lambda: len(spooled(cache)) == 1, 5)
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait(10)
    assert killed.process.stdout is not None
    killed.process.stdout.close()
    assert len(spooled(cache)) == 1
    follower = started(tmp_path, cache, canary_path)
    assert post(follower, form(MODEL, FILE)).status == 200
    assert spooled(cache) == []
    assert follower.stop() == 0


FOLDER = ("__init__", "backend", "engine", "kind", "options", "route")


def test_nothing_else_names_it() -> None:
    tests = {"test_echo", "slow", "test_slow_disk"}
    assert {path.stem for path in Path(__file__).parent.glob("*.py")} == {*FOLDER, *tests}
    words = re.compile(r"tests\.echo|\bEcho(es|ed|Facts|Plan|Options)\b|v1/echo|parrot|[\"'](echoes|shout)[\"']")
    naming = {
        str(path.relative_to(ROOT))
        for package in ("server", "backends", "quantize", "demo", "deploy", "bench")
        for path in (ROOT / package).rglob("*.py")
        if words.search(path.read_text())
    }
    settings = ("pyproject.toml", "Makefile", "server/onecard.example.toml", "tests/conftest.py", "docs/generate.py")
    naming |= {name for name in settings if words.search((ROOT / name).read_text())}
    assert naming == set()


def test_it_moves_in_as_a_folder_and_a_line(tmp_path: Path) -> None:
    """Given a copy of the project, when the folder stands in it and the registry has its line, then all of it works."""
    for package in ("server", "backends", "demo"):
        ignored = shutil.ignore_patterns("__pycache__", "model")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    (tmp_path / "backends/echo").mkdir()
    for name in FOLDER:
        text = (Path(__file__).parent / f"{name}.py").read_text().replace("tests.echo", "backends.echo")
        (tmp_path / "backends/echo" / f"{name}.py").write_text(text)
    registry = tmp_path / "backends/registry.py"
    line = "\nfrom backends.echo.backend import Echoes\nfrom backends.engine"
    listed = registry.read_text().replace("    Folders(),\n", "    Folders(),\n    Echoes(),\n")
    registry.write_text(listed.replace("\nfrom backends.engine", line))
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/test_layering.py", tmp_path / "tests")

    checked = """
import json, sys
from tests import test_layering as rules
from server.app import create_app
from server.metric_table import FAMILIES, PARTS
from server.routes.table import SURFACES
from server.settings.config import Settings
done = [
    rules.test_a_package_imports_only_what_it_may("backends"),
    rules.test_a_package_imports_only_what_it_may("server"),
    rules.test_each_room_imports_only_rooms_below_it("backends", rules.BACKENDS_FOLDERS),
    rules.test_no_other_file_imports_the_route_of_a_kind(),
    rules.test_nothing_of_an_engine_is_imported_outside_its_folder(),
]
app = create_app(Settings(models={"a": {"path": "/none/a.echo", "voices": 3, "backend": "echo"}}))
print(json.dumps({
    "paths": [route.path for route in app.routes if "echo" in route.path],
    "surfaces": [surface.path for surface in SURFACES if "echo" in surface.path],
    "families": [family.full_name for family in FAMILIES if "echo" in family.name],
    "parts": PARTS[-1],
    "backend": app.state.catalog.entries[0].backend,
    "heavy": sorted(rules.HEAVY & set(sys.modules)),
}))
"""
    env = {name: value for name, value in os.environ.items() if name != "ONECARD_BACKENDS"}
    command = [sys.executable, "-c", checked]
    told = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {
        "paths": ["/v1/echo", "/v1/echo", "/v1/echo/text", "/v1/echo/text"],
        "surfaces": ["/v1/echo/text"],
        "families": ["onecard_echoed_characters_total", "onecard_echo_file_bytes"],
        "parts": "voices",
        "backend": "echo",
        "heavy": [],
    }
