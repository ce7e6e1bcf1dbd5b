"""What a node may do to an answer on its way: end before its first byte, between signs of life, or in the middle."""

from __future__ import annotations

import json

import httpx2
import pytest

from tests.cluster.scripted import CHAT, PATH, SAYS, Broken, Cluster, answer, said


@pytest.mark.parametrize(("path", "kind"), [("/api/chat", "application/x-ndjson"), ("/v1/audio/speech", "audio/wav")])
def test_a_stream_that_is_lost_before_its_first_byte_begins_anew(canary_path, path, kind):
    cluster = Cluster(canary_path, answer(kind), answer(kind, b"all of it", whole=True))
    assert said(cluster.ask(path, CHAT)) == b"all of it"
    assert len(set(cluster.asked)) == 2


def test_where_no_node_is_left_a_stream_that_showed_life_ends_with_an_error(canary_path):
    lost = [answer("text/event-stream", b": loading 40%\n\n") for _ in range(3)]
    told = said(Cluster(canary_path, *lost).ask(PATH, CHAT))
    assert told.startswith(b": loading 40%\n\n")
    assert b'"nodes_lost"' in told
    assert b"[DONE]" not in told


def test_an_answer_that_began_anew_is_known_by_its_last_id(canary_path):
    created = b'event: response.created\ndata: {"response":{"id":"resp_%b"}}\n\n'
    word = b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'
    cluster = Cluster(
        canary_path,
        answer("text/event-stream", created % b"first"),
        answer("text/event-stream", created % b"second", word, whole=True),
        answer("application/json", b"{}", whole=True),
    )
    assert b"resp_second" in said(cluster.ask("/v1/responses", {"model": "fake", "input": "hello", "stream": True}))
    cluster.ask("/v1/responses/resp_second", None, "GET")
    assert cluster.asked[2] == cluster.asked[1] != cluster.asked[0]


def test_reading_goes_on_at_another_node_where_one_is_gone(canary_path):
    def gone(host: str) -> httpx2.Response:
        raise httpx2.ConnectError(host)

    cluster = Cluster(canary_path, gone, answer("application/json", b"{}", whole=True))
    assert said(cluster.ask("/v1/models", None, "GET")) == b"{}"
    assert len(set(cluster.asked)) == 2


def test_files_are_asked_for_at_the_node_that_has_their_folder(canary_path):
    """Given nodes of one machine, of which another holds the folder, then it is found, and asked first from then on."""
    refusal = json.dumps({"error": {"code": "files_elsewhere", "message": "another server"}}).encode()
    whole = [answer("application/json", b"{}", whole=True) for _ in range(3)]
    cluster = Cluster(canary_path, answer("application/json", refusal, whole=True, status=503), *whole)
    cluster.ask("/v1/files", None, "GET")
    cluster.ask("/v1/fine_tuning/jobs", {"model": "fake", "training_file": "file-1"})
    cluster.ask("/v1/models/ft:fake:x:1", None, "DELETE")
    first, *rest = cluster.asked
    assert len(set(rest)) == 1
    assert first not in rest


def test_files_are_not_taken_elsewhere_while_their_node_is_full(canary_path):
    refusal = json.dumps({"error": {"code": "draining", "message": "ends"}}).encode()
    cluster = Cluster(canary_path, answer("application/json", refusal, whole=True, status=503))
    assert cluster.ask("/v1/batches", {})[0]["status"] == 503


def test_names_of_models_that_are_none_are_not_kept(canary_path):
    cluster = Cluster(canary_path, *(answer("application/json", b"{}", whole=True) for _ in range(20)))
    for n in range(20):
        cluster.ask(PATH, {**CHAT, "model": f"none{n}\ud800"})
    assert len(set(cluster.asked)) == 1
    router = cluster.edge._router
    assert len(router._models) + len(router._holders) + len(router._ranks) < 10


def test_an_image_is_fetched_from_the_cluster_s_address_where_it_was_drawn(canary_path):
    def drawn(host: str) -> httpx2.Response:
        told = {"data": [{"url": f"http://{host}/v1/images/files/img_1a.png"}]}
        return answer("application/json", json.dumps(told).encode(), whole=True)

    cluster = Cluster(canary_path, drawn, answer("image/png", b"png", whole=True))
    told = json.loads(said(cluster.ask("/v1/images/generations", {"model": "fake", "prompt": "a"})))
    assert told == {"data": [{"url": "http://cluster:80/v1/images/files/img_1a.png"}]}
    cluster.edge._keeper = ({"a", "b"} - {*cluster.asked}).pop()
    assert said(cluster.ask("/v1/images/files/img_1a.png", None, "GET")) == b"png"
    assert cluster.asked[1] == cluster.asked[0]


def test_signs_of_life_alone_never_begin_a_stream(canary_path, monkeypatch):
    """Given a load of longer than anything is held back, when its node dies, then another one answers."""
    monkeypatch.setattr("server.cluster.forwarding.SIGN_EVERY_S", 0.0)
    lost = answer("text/event-stream", b": loading 40%\n\n", b": loading 80%\n\n")
    told = said(Cluster(canary_path, lost, answer("text/event-stream", SAYS, whole=True)).ask(PATH, CHAT))
    assert told == b": loading 40%\n\n: loading 80%\n\n" + SAYS


def test_what_is_refused_says_nothing_of_how_long_a_model_takes(canary_path):
    cluster = Cluster(canary_path, *(answer("application/json", b"{}", whole=True, status=400) for _ in range(9)))
    before = cluster.edge._router._model("fake").job_s
    for _ in range(9):
        cluster.ask(PATH, CHAT)
    assert cluster.edge._router._model("fake").job_s == before


def test_another_program_at_a_node_s_port_is_no_answer(canary_path):
    """Given a node whose answer cannot be unpacked, then another one is asked."""
    packed = httpx2.Response(200, headers={"content-type": "application/json", "content-encoding": "gzip"},
                             stream=Broken(b"not packed at all", whole=True))  # fmt: skip
    cluster = Cluster(canary_path, packed, answer("application/json", b"{}", whole=True))
    assert said(cluster.ask(PATH, {**CHAT, "stream": False})) == b"{}"
    assert len(set(cluster.asked)) == 2


@pytest.mark.parametrize("told", ["soon", "-5", "nan", "1e400", "²", "9" * 5000])
def test_a_wait_that_is_no_number_is_none(canary_path, told):
    """Given a label that no server of ours writes, then the answer passes as it is, whole or as a stream."""
    odd = {"x-onecard-queue-ms": told.encode()}
    whole = httpx2.Response(200, headers={"content-type": "application/json", **odd}, stream=Broken(b"{}", whole=True))
    stream = httpx2.Response(200, headers={"content-type": "text/event-stream", **odd}, stream=Broken(SAYS, whole=True))
    assert said(Cluster(canary_path, whole).ask(PATH, CHAT)) == b"{}"
    assert said(Cluster(canary_path, stream).ask(PATH, CHAT)) == SAYS


@pytest.mark.parametrize("is_deep", [False, True])
def test_a_refusal_that_is_none_goes_elsewhere(canary_path, is_deep):
    """Given an event that looks like an error and cannot be read, then another node answers."""
    deep = b'"a":' + b"[" * 100_000
    garbled = b'data: {"error": ' + (deep if is_deep else b"") + b'"code":"draining"\n\n'
    cluster = Cluster(canary_path, answer("text/event-stream", garbled), answer("text/event-stream", SAYS, whole=True))
    assert said(cluster.ask(PATH, CHAT)) == SAYS
