"""Cached prefixes as clients see them: told truly, found again after a swap, never shared between keys, cleaned up."""

from __future__ import annotations

import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.server import Server, serving, until
from tests.models import canary_kv

pytestmark = pytest.mark.engine

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, canary_kv_model: Path) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("prefix_cache"),
        models={"a": canary_kv_model, "b": copy_of(canary_kv_model)},
        flags=("--context", "2048", "--parallel", "4"),
        env={"ONECARD_SERVER__ADMIN_KEYS": KEYS[0], "ONECARD_SERVER__API_KEYS": KEYS[1]},
    ) as running:
        yield running


def copy_of(model: Path) -> Path:
    """Another model, though it computes the same."""
    other = model.with_name("other" + model.suffix)
    return Path(shutil.copytree(model, other) if model.is_dir() else shutil.copy(model, other))


def ask(server: Server, tokens: list[int], *, model: str = "a", key: str = KEYS[0], **fields: Any) -> httpx2.Response:
    body = {"model": model, "prompt": tokens, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    reply = httpx2.post(
        f"{server.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60
    )
    assert reply.status_code == 200, reply.text
    return reply


def cached(reply: httpx2.Response) -> int:
    n_tokens: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reply.headers["x-onecard-cached-tokens"] == str(n_tokens)
    return n_tokens


def text(reply: httpx2.Response) -> str:
    content: str = reply.json()["choices"][0]["text"]
    return content


def move(server: Server, model: str, what: str) -> None:
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    httpx2.post(f"{server.url}/v1/models/{model}/{what}", json={}, headers=headers, timeout=60).raise_for_status()


def root_of(server: Server) -> Path:
    """The folder in memory whose lock the server holds."""
    open_files = (fd.readlink() for fd in Path(f"/proc/{server.process.pid}/fd").iterdir() if fd.is_symlink())
    locked = [file.parent for file in open_files if file.parent.name.startswith("onecard-")]
    return next(folder for folder in locked if folder.parent.name != "prefix_cache")


def test_usage_and_header_tell_how_much_of_the_prompt_was_there(server: Server) -> None:
    tokens = canary_kv.prompt(1, 300)

    cold, warm = ask(server, tokens), ask(server, tokens)

    assert (cached(cold), cached(warm)) == (0, 299)
    assert text(cold) == text(warm)


def test_a_conversation_survives_the_swap_of_its_model(server: Server) -> None:
    tokens = canary_kv.prompt(2, 1900)
    first = ask(server, tokens)
    move(server, "a", "unload")
    ask(server, canary_kv.prompt(3, 50), model="b")
    move(server, "b", "unload")

    second = ask(server, tokens + canary_kv.prompt(4, 20))

    assert cached(first) == 0
    assert len(tokens) + 20 - cached(second) < 64
    assert text(second) == text(ask(server, tokens + canary_kv.prompt(4, 20), cache_prompt=False))


def test_a_crash_of_the_worker_costs_no_conversation_and_no_correctness(server: Server) -> None:
    tokens = canary_kv.prompt(5, 200)
    before = set(root_of(server).rglob("*.kv"))
    first = ask(server, tokens)
    until(lambda: bool(set(root_of(server).rglob("*.kv")) - before), within_s=10, what="it is kept after the answer")
    for worker in server.workers():
        worker.kill()
    until(lambda: not any(w.is_running() for w in server.workers()), within_s=10, what="the workers are gone")

    again = ask(server, tokens)

    assert text(again) == text(first)
    assert cached(again) == 199


def test_no_key_finds_what_another_one_computed(server: Server) -> None:
    tokens = canary_kv.prompt(6, 250)

    replies = [ask(server, tokens, key=key) for key in (KEYS[0], KEYS[1], KEYS[0])]

    assert [cached(reply) for reply in replies] == [0, 0, 249]
    assert len({text(reply) for reply in replies}) == 1


def test_files_are_for_their_owner_only_within_the_cap_and_in_the_status(server: Server) -> None:
    for _ in range(2):  # the first one is kept by the time the second one runs
        ask(server, canary_kv.prompt(7, 200))
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    memory = httpx2.get(f"{server.url}/v1/status", headers=headers).json()["memory"]

    files = list(root_of(server).rglob("*.kv"))

    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in files} == {0o700}
    assert 0 < memory["prefix_cache_bytes"] <= memory["prefix_cache_max_bytes"]


def test_a_folder_that_cannot_be_used_is_told_and_costs_no_answer(tmp_path: Path, canary_kv_model: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path), "ONECARD_MEMORY__PREFIX_CACHE_DISK": "64MiB"}
    with serving(tmp_path, models={"a": canary_kv_model}, env=env) as server:
        move(server, "a", "load")
        move(server, "a", "unload")
        (folder,) = (tmp_path / "onecard/prefix_cache").glob("*/*/")
        folder.rmdir()
        folder.write_text("no folder")

        answers = [ask(server, canary_kv.prompt(1, 300)) for _ in range(2)]

        assert [cached(answer) for answer in answers] == [0, 0]
        told = [line for line in server.log.read_text().splitlines() if "prefix_cache_off" in line]
        assert len(told) == 1
        assert "model=a" in told[0]
        assert "File exists" in told[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_server_that_ended_or_was_killed(
    tmp_path: Path, canary_kv_model: Path, number: int
) -> None:
    """Neither in memory nor on the disk, which takes what two small conversations leave no memory for."""
    env = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "ONECARD_MEMORY__PREFIX_CACHE": "1MiB",
        "ONECARD_MEMORY__PREFIX_CACHE_DISK": "64MiB",
    }

    def kept() -> set[str]:
        return {path.parent.name for path in (tmp_path / "cache").rglob("*.kv")}

    with serving(tmp_path, models={"a": canary_kv_model}, flags=("--context", "1024"), env=env) as server:
        root, answers = root_of(server), []
        for seed in [*range(8), 0]:
            answers.append(ask(server, canary_kv.prompt(seed, 800)))
        until(lambda: bool(list(root.rglob("*.kv"))), within_s=10, what="it is kept after the answer")
        assert [cached(answer) for answer in answers] == [0] * 8 + [799]
        assert text(answers[0]) == text(answers[8])
        assert kept()
        server.stop(number)
        assert bool(kept()) is (number == signal.SIGKILL)

    if number == signal.SIGKILL:
        with serving(tmp_path, models={"a": canary_kv_model}, env=env) as successor:
            assert not kept()
            successor.stop()
    assert not root.exists()
    assert list((tmp_path / "cache/onecard/prefix_cache").iterdir()) == []
