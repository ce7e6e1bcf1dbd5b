"""`GET /v1/events` over real sockets: needs a key, tells every happening, keeps no model, ends with the server."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator

from tests.e2e.server import until
from tests.http.conftest import KEY, Server, settings
from tests.present import present


@contextlib.contextmanager
def listening(server: Server, query: str = "", **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", f"/v1/events{query}", headers=headers)
        response = connection.getresponse()
        yield response
    finally:
        connection.close()


def next_document(response: http.client.HTTPResponse) -> dict | None:
    """The next event; None at the end of the stream."""
    while line := response.readline():
        assert b"\r" not in line
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    return None


def test_every_load_is_told_with_its_figures(server):
    server.post("/v1/models/fake/unload", {})
    with listening(server) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.readline() == b": listening\n"
        server.post("/v1/models/fake/load", {})
        told: list[dict] = []
        while not told or told[-1]["what"] != "loaded":
            told.append(present(next_document(response)))

    assert all(set(event) == {"time", "what", "model", "reason", "figures"} for event in told)
    loading, loaded = (next(e for e in told if e["what"] == what) for what in ("loading", "loaded"))
    assert loading["model"] == loaded["model"] == "fake"
    assert abs(time.time() - loaded["time"]) < 60
    assert loaded["figures"]["measured_bytes"] > 0
    assert loaded["figures"]["context"] == 4096


def test_what_has_happened_before_is_told_to_who_asks_for_it(server):
    server.post("/v1/models/fake/unload", {})
    server.post("/v1/models/fake/load", {})
    with listening(server, "?last=2") as response:
        assert [present(next_document(response))["what"] for _ in range(2)] == ["loading", "loaded"]
    for query, param in (("?last=-1", "last"), ("?last=129", "last"), ("?last=x", "last"), ("?lats=1", "lats")):
        answer = server.get(f"/v1/events{query}")
        assert (answer.status, answer.json()["error"]["param"]) == (400, param)


def test_events_need_a_key_and_are_read_with_it(keyed):
    with listening(keyed) as response:
        assert response.status == 401
    with listening(keyed, authorization=f"Bearer {KEY}") as response:
        assert response.status == 200
        assert response.readline() == b": listening\n"


def test_reading_keeps_nothing_and_comments_keep_the_reader(canary_path, tmp_path):
    config = settings(canary_path, sse_keepalive_s=0.2)
    config["models"]["fake"]["keep_alive_s"] = 0.5
    running = Server(config, tmp_path / "log")
    try:
        with listening(running) as response:
            assert running.chat("hello").status == 200
            lines = iter(response.readline, b"")
            assert any(line == b": keep-alive\n" for line in lines)
            until(lambda: running.model()["state"] == "unloaded")
            document = next_document(response)
            while document is not None and document["what"] not in ("unloading", "evicted"):
                document = next_document(response)
            assert document is not None
            assert (document["model"], document["reason"]) == ("fake", "ttl")
    finally:
        assert running.stop() == 0


def test_the_stream_ends_when_the_server_has_stopped(canary_path, tmp_path):
    running = Server(settings(canary_path), tmp_path / "log")
    with listening(running) as response:
        assert response.readline() == b": listening\n"
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 20
        told = []
        while (document := next_document(response)) is not None:
            told.append(document["what"])
    assert told[0] == "draining"
    assert told[-1] == "stopped"
