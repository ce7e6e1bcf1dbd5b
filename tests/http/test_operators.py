"""Loading and unloading by hand is for who has a key, or for this machine where there is none; idle costs nothing."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from server.app import create_app
from server.door.access import KeyRing
from server.settings.config import Settings
from tests.http.conftest import ADMIN, KEY, settings

VERBS = ("load", "unload")


@pytest.mark.parametrize("verb", VERBS)
def test_with_keys_set_only_an_admin_key_moves_models(keyed, verb):
    path = f"/v1/models/fake/{verb}"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}):
        assert keyed.post(path, {}, headers=headers).status == 401
    assert keyed.post(f"{path}?api_key={KEY}", {}).status == 401
    refused = keyed.post(path, {}, headers={"authorization": f"Bearer {KEY}"})
    assert refused.status == 403
    assert refused.error["code"] == "admin_key_required"
    assert "admin_keys in [server]" in refused.error["message"]
    for headers in ({"authorization": f"Bearer {ADMIN}"}, {"x-api-key": KEY, "authorization": f"Bearer {ADMIN}"}):
        assert keyed.post(path, {}, headers=headers).status == 200


MOVES = [
    *(f"models/fake/{verb}" for verb in ("load", "unload", "pin", "unpin")),
    *(f"fine_tuning/jobs/any/{verb}" for verb in ("cancel", "pause", "resume")),
    "config/reload",
    "batches/any/cancel",
]


@pytest.mark.parametrize("path", MOVES)
def test_a_wish_that_a_route_cannot_keep_is_refused_by_name(keyed, path):
    """Who asks for a context that the model does not get has to hear of it."""
    for body, code in (({"context": 10**4000}, "unknown_parameter"), ([], "invalid_json"), (b"{", "invalid_json")):
        answer = keyed.post(f"/v1/{path}", body, headers={"x-api-key": ADMIN})
        assert (answer.status, answer.error["code"]) == (400, code)


GENERATING = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "/v1/responses": {"input": "hi"},
    "/infill": {"input_prefix": "hi", "input_suffix": ""},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["hi"]},
}


@pytest.mark.parametrize(("path", "body"), GENERATING.items(), ids=GENERATING)
def test_with_keys_set_only_an_admin_key_goes_before_others_or_keeps_a_model(keyed, path, body):
    for wish in ({"priority": 1}, {"keep_alive": -1}, {"keep_alive": "5m"}, {"keep_alive": 0}):
        asked = {"model": "fake", **body, **wish}
        answer = keyed.post(path, asked, headers={"x-api-key": KEY})
        assert (answer.status, answer.error["param"]) == (403, next(iter(wish)))
        assert "admin_keys in [server]" in answer.error["message"]
        assert keyed.post(path, asked, headers={"x-api-key": ADMIN}).status != 403
    for allowed in ({"priority": 0}, {"priority": -5}, {"keep_alive": None}, {"priority": None}):
        assert keyed.post(path, {"model": "fake", **body, **allowed}, headers={"x-api-key": KEY}).status != 403


def test_where_all_keys_are_plain_none_moves_models(canary_path):
    ring = KeyRing([KEY])
    assert not ring.is_admin([(b"x-api-key", KEY.encode())])
    assert KeyRing([], [ADMIN]).is_admin([(b"x-api-key", ADMIN.encode())])
    assert KeyRing([]).is_admin([])


@pytest.mark.parametrize("verb", VERBS)
def test_without_keys_web_pages_and_other_hosts_move_nothing(server, verb):
    path = f"/v1/models/fake/{verb}"
    before = server.model()["state"]
    assert server.post(path, {}, headers={"host": "evil.example"}).status == 403
    assert (
        server.post(path, {}, headers={"origin": "https://evil.example", "sec-fetch-site": "cross-site"}).status == 403
    )
    assert server.post(path, b"x", headers={"content-type": "text/plain"}).status == 415
    assert server.get(path).status in (404, 405)
    assert server.model()["state"] == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("peer", "status"), [("203.0.113.9", 403), ("::ffff:203.0.113.9", 403), ("fe80::1", 403)])
async def test_without_keys_another_machine_moves_nothing(canary_path, verb, peer, status):
    config = settings(canary_path, host="0.0.0.0", allow_public=True)
    app = create_app(Settings.model_validate(config))
    headers = [(b"host", b"192.0.2.1"), (b"content-type", b"application/json"), (b"content-length", b"2")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/v1/models/fake/{verb}",
        "raw_path": b"",
        "query_string": b"",
        "headers": headers,
        "client": (peer, 4711),
        "server": ("192.0.2.1", 8080),
        "scheme": "http",
        "http_version": "1.1",
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"])["error"]["code"] == "admin_needs_key"


def test_an_unused_server_costs_next_to_nothing_and_moves_nothing(server):
    assert server.chat("hello").status == 200
    server.wait_idle()
    process = psutil.Process(server.pid)
    for path in ("/health", "/metrics"):  # what the first to ask makes the server import is no growth
        assert server.get(path).status == 200
    loads = moves(server)
    rss_bytes, cpu_s, began = process.memory_info().rss, cpu(process), time.monotonic()
    while time.monotonic() - began < 8:
        assert server.get("/health").status == 200
        assert server.get("/metrics").status == 200
        time.sleep(1)
    share = (cpu(process) - cpu_s) / (time.monotonic() - began)

    # 0.9 % on a quiet machine and twice that beside another process; a loop that looks instead of waiting takes more.
    assert share < 0.05, f"{share:.1%} of a core"
    assert moves(server) == loads
    assert process.memory_info().rss - rss_bytes < 4 * 2**20


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def moves(server) -> list[str]:
    page = server.get("/metrics").body.decode().splitlines()
    return [line for line in page if line.startswith(("onecard_model_loads_total", "onecard_model_evictions_total"))]
