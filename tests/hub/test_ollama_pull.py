"""`POST /api/pull` on a server beside a hub on loopback: Ollama's own client fetches, leaves, and is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import ollama
import pytest

from tests.cli.conftest import clean_environment
from tests.e2e.server import Server, serving, until
from tests.http.conftest import ADMIN, KEY
from tests.hub.conftest import CHAT, WORLD
from tests.hub.loopback import Hub, hub, sha256
from tests.present import present

HELLO = [{"role": "user", "content": "hello"}]
NAME = "hf.co/org/chat:F16"
HALF = len(CHAT) // 2
MORE = {f"org/{name}": {f"{name}-F16.gguf": CHAT} for name in ("late", "slow", "shared", "last")}
CONFIG = """
[models.late]
path = "hf:org/late:F16"
[scheduler]
template_process = false
[memory]
device = "cpu"
budget = "2GiB"
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Hub]:
    with hub({**WORLD, **MORE}) as running:
        running.gated.add("org/secret")
        yield running


@pytest.fixture(scope="module")
def beside(world: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model whose files are still to come."""
    yield from _served(world, tmp_path_factory.mktemp("pull"), CONFIG)


def _served(world: Hub, place: Path, config: str) -> Iterator[Server]:
    env = {**clean_environment(place), "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_ENDPOINT": world.url}
    (place / "c.toml").write_text(config)
    with serving(place, models={}, flags=("--config", str(place / "c.toml")), env=env) as server:
        yield server


@pytest.fixture
def theirs(beside: Server) -> ollama.Client:
    return ollama.Client(host=beside.url, timeout=60)


@pytest.fixture
def stalled(world: Hub) -> Iterator[Hub]:
    """A hub that stops in the middle of a file until it is told to go on."""
    world.stop_after = HALF
    world.stopped.clear()
    world.go.clear()
    yield world
    world.stop_after = None
    world.go.set()


def cached(server: Server, name: str) -> bytes | None:
    """The content of a model's file in the cache, once it is there."""
    found = [*(server.log.parent / "hub").glob(f"models--org--{name}/snapshots/*/{name}-F16.gguf")]
    return found[0].read_bytes() if found else None


def test_its_own_client_pulls_and_then_chats(theirs: ollama.Client, beside: Server) -> None:
    steps = list(theirs.pull(NAME, stream=True))
    told = [step.status for step in steps]
    assert (told[0], told[-2:]) == ("pulling manifest", ["writing manifest", "success"])
    files = [step for step in steps if step.digest]
    assert {step.digest for step in files} == {f"sha256:{sha256(CHAT)}"}
    assert [present(step.completed) for step in files] == sorted(present(step.completed) for step in files)
    assert (files[-1].completed, files[-1].total) == (len(CHAT), len(CHAT))
    assert cached(beside, "chat") == CHAT

    assert theirs.chat(NAME, messages=HELLO).message.content == "echo: hello"
    assert NAME in [model.model for model in theirs.list().models]
    assert {"late", NAME} == {model["id"] for model in beside.get("/v1/models")["data"]}
    assert theirs.pull(NAME).status == "success"

    assert httpx2.post(f"{beside.url}/v1/config/reload", json={}, timeout=20).status_code == 200
    assert theirs.chat(f"{NAME}:latest", messages=HELLO).message.content == "echo: hello", "a reload keeps it"


def test_a_model_of_the_configuration_is_served_once_it_is_pulled(theirs: ollama.Client, beside: Server) -> None:
    with pytest.raises(ollama.ResponseError, match="not in the cache"):
        theirs.chat("late", messages=HELLO)
    assert theirs.pull("late").status == "success"
    assert theirs.chat("late", messages=HELLO).message.content == "echo: hello"


def test_a_client_that_leaves_ends_the_fetch_and_the_next_one_goes_on(
    theirs: ollama.Client, beside: Server, stalled: Hub
) -> None:
    asked = {"model": "org/slow:F16"}
    with httpx2.stream("POST", f"{beside.url}/api/pull", json=asked, timeout=60) as stream:
        lines = stream.iter_lines()
        assert "pulling manifest" in next(lines)
        assert stalled.stopped.wait(60)
        until(lambda: any(file.stat().st_size for file in (beside.log.parent / "hub").rglob("*.incomplete")), 30)
    until(lambda: 'pull_stopped model=org/slow:F16 reason="no one' in beside.log.read_text(), 30)
    stalled.stop_after = None
    stalled.asked.clear()
    assert theirs.pull("org/slow:F16").status == "success"
    starts = [int(given[6:-1]) for _, given in stalled.asked if given is not None and given.endswith("-")]
    assert 0 < starts[0] <= HALF
    assert cached(beside, "slow") == CHAT


def test_two_clients_follow_one_fetch(theirs: ollama.Client, beside: Server, stalled: Hub) -> None:
    asked = {"model": "org/shared:F16"}
    ended: list[Any] = []
    other = threading.Thread(target=lambda: ended.append(theirs.pull("org/shared:F16").status))
    with httpx2.stream("POST", f"{beside.url}/api/pull", json=asked, timeout=60) as stream:
        lines = stream.iter_lines()
        assert "pulling manifest" in next(lines)
        assert stalled.stopped.wait(60)
        other.start()
        with httpx2.stream("POST", f"{beside.url}/api/pull", json=asked, timeout=60) as third:
            more = third.iter_lines()
            assert "pulling manifest" in next(more)
    stalled.go.set()
    other.join(60)
    assert ended == ["success"], "one that stays keeps the fetch when others leave"
    assert beside.log.read_text().count("pulling model=org/shared:F16") == 1


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("llama3.2:1b", 404, "pull hf.co/OWNER/NAME:Q4_K_M"),
        ("org/absent", 404, "has no repository org/absent"),
        ("org/secret", 404, "is gated"),
        ("https://example.com/org/chat", 400, "models come from huggingface.co"),
        ("hf.co/org", 400, "names no repository"),
        ("hf.co/datasets/org/chat", 400, "is no model's page"),
        ("--config=/etc/passwd", 404, "does not exist"),
        ("x" * 300, 400, "1 to 200 characters"),
    ],
)
def test_what_cannot_be_had_is_a_status_and_a_sentence(theirs, name: str, status: int, sentence: str) -> None:
    for stream in (True, False):
        with pytest.raises(ollama.ResponseError) as caught:
            list(theirs.pull(name, stream=True)) if stream else theirs.pull(name)
        assert (caught.value.status_code, sentence in caught.value.error) == (status, True), caught.value.error


def test_what_goes_wrong_later_is_the_last_line(theirs: ollama.Client, world: Hub) -> None:
    with pytest.raises(ollama.ResponseError, match="has no Q2_K"):
        list(theirs.pull("org/chat:Q2_K", stream=True))
    with pytest.raises(ollama.ResponseError) as caught:
        theirs.pull("org/chat:Q8_0")
    assert (caught.value.status_code, "is not fetched" in caught.value.error) == (422, True)


def test_only_who_may_fetch_does_and_a_server_that_ends_ends_the_fetch(stalled: Hub, tmp_path: Path) -> None:
    keys = f'[server]\napi_keys = ["{KEY}"]\nadmin_keys = ["{ADMIN}"]\n'
    for server in _served(stalled, tmp_path, CONFIG + keys):
        ours = ollama.Client(host=server.url, timeout=60, headers={"authorization": f"Bearer {KEY}"})
        with pytest.raises(ollama.ResponseError, match="Pulling a model needs an admin key"):
            ours.pull("org/last:F16")
        admin = ollama.Client(host=server.url, timeout=60, headers={"authorization": f"Bearer {ADMIN}"})
        steps = admin.pull("org/last:F16", stream=True)
        assert next(steps).status == "pulling manifest"
        assert stalled.stopped.wait(60)
        server.process.terminate()
        with pytest.raises(ollama.ResponseError, match="shutting down; what has come is kept"):
            list(steps)
        assert server.process.wait(30) == 0
    assert [*(tmp_path / "hub").rglob("*.incomplete")]


@pytest.mark.parametrize(
    ("method", "path", "sentence"),
    [
        ("DELETE", "/api/delete", "`onecard rm NAME`"),
        ("POST", "/api/copy", "`aliases`"),
        ("POST", "/api/create", "[models.NAME]"),
        ("POST", "/api/push", "`hf upload`"),
        ("POST", "/api/blobs/sha256:00", "stay where they are"),
        ("POST", "/api/other", "Of Ollama's API there are"),
    ],
)
def test_what_there_is_not_says_what_to_do(beside: Server, method: str, path: str, sentence: str) -> None:
    answer = httpx2.request(method, f"{beside.url}{path}", json={"model": "late"}, timeout=20)
    assert (answer.status_code, sentence in answer.json()["error"]) == (404, True), answer.text
