"""Conversations through a cluster on Ray while one of its servers is killed: no answer is wrong, and few are lost."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.cluster.test_ray import cluster, get, is_ready, server_at
from tests.e2e.server import until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]' (500 MB)"
)
N_TURNS = 10
N_AT_ONCE = 32


@dataclass
class Seen:
    """What clients got."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    lost_streams: int = 0
    refused: list[str] = field(default_factory=list)
    same_node: int = 0
    later_turns: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


def say(url: str, messages: list[dict[str, str]], *, stream: bool) -> tuple[str, str | None]:
    """The node, and the text; None where the stream ended with an error."""
    body = json.dumps({"model": "fake", "messages": messages, "stream": stream}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        node, told = answer.headers["x-onecard-node"], answer.read()
    if not stream:
        return node, json.loads(told)["choices"][0]["message"]["content"]
    if b'"node_lost"' in told:
        return node, None
    assert told.endswith(b"data: [DONE]\n\n"), told[-200:]
    chunks = [json.loads(line[6:]) for line in told.splitlines() if line.startswith(b"data: {")]
    return node, "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def talk(url: str, number: int, seen: Seen) -> None:
    """One conversation, every other turn as a stream."""
    messages: list[dict[str, str]] = []
    before = None
    for turn in range(N_TURNS):
        text = f"talk {number} turn {turn}"
        messages.append({"role": "user", "content": text})
        try:
            node, answer = say(url, messages, stream=turn % 2 == 1)
        except urllib.error.HTTPError as refusal:
            with seen.lock:
                seen.refused.append(f"{refusal.code}: {refusal.read()[:200]!r}")
            continue
        with seen.lock:
            seen.lost_streams += answer is None
            seen.right += answer == f"echo: {text}"
            if answer not in (None, f"echo: {text}"):
                seen.wrong.append(f"{text}: {answer}")
            if before is not None:
                seen.later_turns += 1
                seen.same_node += node == before
        before = node
        messages.append({"role": "assistant", "content": f"echo: {text}"})


def talks(url: str, first: int, count: int, seen: Seen, kill: int | None = None) -> None:
    """So many conversations, `N_AT_ONCE` at a time; after a third of the answers `kill` ends."""
    with ThreadPoolExecutor(N_AT_ONCE) as clients:
        running = [clients.submit(talk, url, first + n, seen) for n in range(count)]
        if kill is not None:
            until(lambda: seen.right >= count * N_TURNS // 3, 300)
            os.kill(kill, signal.SIGKILL)
        for one in running:
            one.result()


def overhead_ms(url: str) -> float:
    """Of a small request, the median of 150, one after the other."""
    took = []
    for n in range(150):
        began = time.perf_counter()
        say(url, [{"role": "user", "content": f"small {n}"}], stream=False)
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def test_a_storm_with_one_server_killed(tmp_path, full_counts):
    """Given two nodes and conversations on both, when one server is killed, then only streams it had begun are lost."""
    with cluster(tmp_path, "--nodes", "2") as (url, _, _):
        until(lambda: is_ready(url, 2), 120)
        calm = Seen()
        talks(url, 0, 100 if full_counts else 10, calm)
        assert (calm.wrong, calm.refused, calm.lost_streams) == ([], [], 0)
        assert calm.same_node >= 0.95 * calm.later_turns
        nodes = get(url + "/v1/cluster")["nodes"]
        if full_counts:
            print(f"\nthrough the cluster {overhead_ms(url):.1f} ms, direct {overhead_ms(nodes[0]['url']):.1f} ms")
        storm = Seen()
        talks(url, 1000, 200 if full_counts else 20, storm, kill=server_at(nodes[0]["url"]))
        repeats = get(url + "/v1/cluster")["repeats"]
        print(f"\ncalm {calm.same_node} of {calm.later_turns} at home; storm {storm}, {repeats} repeats")
        assert (storm.wrong, storm.refused) == ([], [])
        assert storm.lost_streams <= N_AT_ONCE // 2
        assert storm.right + storm.lost_streams == (2000 if full_counts else 200)
