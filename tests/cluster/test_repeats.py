"""A request without a token is given to another node, or to the same one once it is back."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

from server.cluster.attempts import MOST_LOST
from tests.cluster.scripted import CHAT, PATH, SAYS, Cluster, answer, said

WHOLE = {**CHAT, "stream": False}


def error(code: str, message: str) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "x", "param": None, "code": code}}, separators=(",", ":")
    ).encode()


def gone(host: str) -> httpx2.Response:
    raise httpx2.ConnectError(host)


def reset(host: str) -> httpx2.Response:
    raise httpx2.ReadError(host)


def test_a_full_queue_is_no_limit_of_a_key(canary_path):
    """Given a 429 of a full queue, then another node is asked; a limit of a key is the same everywhere."""
    full = answer("application/json", error("rate_limit_exceeded", "the queue is full: 9 wait"), whole=True, status=429)
    limit = answer("application/json", error("rate_limit_exceeded", "Rate limit reached: ..."), whole=True, status=429)
    cluster = Cluster(canary_path, full, answer("application/json", b"{}", whole=True), limit)
    assert said(cluster.ask(PATH, WHOLE)) == b"{}"
    assert cluster.ask(PATH, WHOLE)[0]["status"] == 429
    assert len(cluster.asked) == 3


def test_where_every_node_is_full_the_client_learns_it_at_once(canary_path):
    full = [answer("application/json", error("x", "the queue is full"), whole=True, status=429) for _ in range(2)]
    cluster = Cluster(canary_path, *full, patience_s=600)
    assert cluster.ask(PATH, WHOLE)[0]["status"] == 429


@pytest.mark.parametrize("is_back", [True, False])
def test_a_node_that_is_started_again_is_waited_for(canary_path, is_back):
    """Given one node that is gone, when it comes back in time, then it answers, else there is one sentence."""
    cluster = Cluster(canary_path, n_nodes=1, patience_s=30 if is_back else 0.1)

    def begins_anew(host: str) -> httpx2.Response:
        if is_back:
            asyncio.get_running_loop().call_later(0.05, lambda: cluster.hear(life="2"))
        return gone(host)

    cluster.answers = [begins_anew, answer("application/json", b"{}", whole=True)]
    if is_back:
        assert said(cluster.ask(PATH, WHOLE)) == b"{}"
    else:
        with pytest.raises(Exception, match="No node could answer: 0 of 1 are up"):
            cluster.ask(PATH, WHOLE)


def test_connections_that_break_are_no_reason_to_refuse_while_nodes_live(canary_path):
    """Given two nodes that both lose a request, when they live, then the first is asked again, three times in all."""
    cluster = Cluster(canary_path, reset, reset, answer("application/json", b"{}", whole=True))
    assert said(cluster.ask(PATH, WHOLE)) == b"{}"
    cluster = Cluster(canary_path, *[reset] * 9)
    with pytest.raises(Exception, match="3 nodes ended with this request"):
        cluster.ask(PATH, WHOLE)
    assert len(cluster.asked) == MOST_LOST


def test_a_batch_that_may_have_begun_is_not_begun_twice(canary_path):
    cluster = Cluster(canary_path, reset, answer("application/json", b"{}", whole=True))
    with pytest.raises(Exception, match="A node ended with this request"):
        cluster.ask("/v1/batches", {})
    assert len(cluster.asked) == 1


@pytest.mark.parametrize(
    "event",
    [
        b"data: " + error("draining", "ends"),
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"ends","code":"draining"}}',
        b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"server_error",'
        b'"message":"the server is shutting down"}}}',
    ],
)  # fmt: skip
def test_an_error_in_place_of_the_first_token_goes_elsewhere(canary_path, event):
    """Given a stream that has shown life, when its node ends and says so, then another node answers."""
    ends = answer("text/event-stream", b": loading 40%\n\n", event + b"\n\n", whole=True)
    cluster = Cluster(canary_path, ends, answer("text/event-stream", SAYS, whole=True))
    assert said(cluster.ask(PATH, CHAT)) == b": loading 40%\n\n" + SAYS
    refused = Cluster(canary_path, answer("text/event-stream", event + b"\n\n", whole=True), n_nodes=1, patience_s=0)
    sent = refused.ask(PATH, CHAT)
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["message"] in ("ends", "the server is shutting down")


def test_an_error_behind_a_token_passes(canary_path):
    stream = SAYS[: SAYS.index(b"data: [DONE]")] + b"data: " + error("draining", "ends") + b"\n\n"
    assert said(Cluster(canary_path, answer("text/event-stream", stream, whole=True)).ask(PATH, CHAT)) == stream


def test_a_node_that_falls_silent_loses_what_has_no_token(canary_path):
    """Given a node that holds the connection and says nothing, when its reports end, then another one is asked."""
    cluster = Cluster(canary_path)

    async def hangs(host: str) -> httpx2.Response:
        asyncio.get_running_loop().call_soon(lambda: cluster.hear(silent=host))
        await asyncio.Event().wait()
        raise AssertionError

    cluster.answers = [hangs, answer("application/json", b"{}", whole=True)]
    assert said(cluster.ask(PATH, WHOLE)) == b"{}"
    assert len(set(cluster.asked)) == 2


def test_where_all_are_silent_no_request_is_given_up(canary_path):
    """Given that what tells of the nodes is gone, and no node, then requests go on."""
    cluster = Cluster(canary_path)

    async def slow(host: str) -> httpx2.Response:
        heard = asyncio.Event()

        def hear() -> None:
            cluster.hear(silent="ab")
            heard.set()

        asyncio.get_running_loop().call_soon(hear)
        await heard.wait()
        await asyncio.sleep(0)  # one turn of the loop, in which it would be given up
        return answer("application/json", b"{}", whole=True)

    cluster.answers = [slow]
    assert said(cluster.ask(PATH, WHOLE)) == b"{}"


def test_a_stream_that_was_lost_tells_nothing_of_how_long_its_model_takes(canary_path):
    begun = SAYS[: SAYS.index(b"data: [DONE]")]
    cluster = Cluster(canary_path, answer("text/event-stream", begun), answer("text/event-stream", SAYS, whole=True))
    before = cluster.edge._router._model("fake").job_s
    assert b'"node_lost"' in said(cluster.ask(PATH, CHAT))
    assert cluster.edge._router._model("fake").job_s == before
    cluster.ask(PATH, CHAT)
    assert cluster.edge._router._model("fake").job_s != before


def test_the_answer_to_head_has_its_length_and_no_body(canary_path):
    head = httpx2.Response(200, headers={"content-type": "application/json", "content-length": "77"})
    sent = Cluster(canary_path, head).ask("/v1/models", None, "HEAD")
    assert dict(sent[0]["headers"])[b"content-length"] == b"77"
    assert sent[1]["body"] == b""


def test_a_page_of_metrics_that_is_off_is_a_node_s_to_refuse(canary_path):
    off = answer("application/json", b"{}", whole=True, status=404)
    cluster = Cluster(canary_path, off, metrics=False)
    assert cluster.ask("/metrics", None, "GET")[0]["status"] == 404
    assert len(cluster.asked) == 1


def test_what_is_held_back_for_long_is_told_by_a_sign_of_life(canary_path, monkeypatch):
    """Given a stream that says no token for long, then its client hears a comment, and it can still begin anew."""
    monkeypatch.setattr("server.cluster.forwarding.SIGN_EVERY_S", 0.0)
    lost = answer("text/event-stream", b'event: message_start\ndata: {"id":"lost"}\n\n')
    told = said(Cluster(canary_path, lost, answer("text/event-stream", SAYS, whole=True)).ask(PATH, CHAT))
    assert told == b": waiting\n\n" + SAYS
