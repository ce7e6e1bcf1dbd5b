"""The gate over real sockets: hosts, keys, origins, content types, and HTTP that two readers could take differently."""

from __future__ import annotations

import functools
import json
import socket
import time

import pytest
from starlette.routing import Route

from server.app import create_app
from server.settings.config import Settings
from tests.http.conftest import KEY, settings
from tests.http.test_attacks import refused

CHAT = "/v1/chat/completions"
BODY = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
BODY_BYTES = json.dumps(BODY).encode()


def request(path: str = "/v1/models", *lines: str, method: str = "GET", host: str | None = "localhost") -> bytes:
    head = [f"{method} {path} HTTP/1.1", *([] if host is None else [f"host: {host}"]), *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


def post(body: bytes, *lines: str) -> bytes:
    return request(CHAT, "content-type: application/json", *lines, method="POST") + body


def status_of(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


def body_of(data: bytes) -> dict:
    return json.loads(data.split(b"\r\n\r\n", 1)[1])["error"]


# --- keys ----------------------------------------------------------------------------------------------------------

WRONG_KEYS = {
    "none": {},
    "wrong": {"authorization": "Bearer wrong"},
    "no scheme": {"authorization": KEY},
    "basic": {"authorization": f"Basic {KEY}"},
    "non-ascii": {"authorization": "Bearer \xff\xfe\xe9"},
    "right and wrong": {"authorization": f"Bearer {KEY}", "x-api-key": "wrong"},
    "long": {"x-api-key": "x" * 20_000},
}


def routes(canary_path) -> list[tuple[str, str]]:
    app = create_app(Settings.model_validate(settings(canary_path)))
    found = []
    for route in app.routes:
        assert isinstance(route, Route)
        found += [(method, route.path.replace("{id:path}", "fake")) for method in sorted(route.methods or ())]
    return found


def test_every_route_but_health_and_the_page_needs_a_key(keyed, canary_path):
    for method, path in routes(canary_path):
        for name, headers in WRONG_KEYS.items():
            answer = keyed.call(method, path, headers=headers)
            if path == "/health" or (path == "/" and method != "POST"):
                assert answer.status == 200
                continue
            if path.startswith(("/page/", "/v1/images/files/")):  # the page's own files; images by secret addresses
                assert answer.status == 404
                continue
            assert answer.status == 401, (method, path, name)
            if method != "HEAD":
                assert refused(answer, 401)["code"] == "invalid_api_key"
                assert KEY not in answer.body.decode()
    assert keyed.model()["state"] == "unloaded" if keyed.get("/v1/status").status == 200 else True


def test_unknown_paths_and_methods_need_a_key_too(keyed):
    for method, path in [("GET", "/nope"), ("PUT", CHAT), ("TRACE", "/v1/models"), ("OPTIONS", CHAT), ("POST", "/")]:
        refused(keyed.call(method, path), 401)
    for path in ("/health/", "/health/..%2fv1/models", "//health", "/health;x", "/HEALTH", "/health%2f"):
        refused(keyed.get(path), 401)
    refused(keyed.get(f"/v1/models?api_key={KEY}"), 401)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"x-api-key": "sk-second-9876543210"},
    ],
)
def test_a_right_key_is_taken_wherever_clients_put_it(keyed, headers):
    assert keyed.get("/v1/models", headers=headers).status == 200
    assert keyed.get("/metrics", headers=headers).status == 200
    assert keyed.post(CHAT, BODY, headers=headers).status == 200


def test_two_credentials_of_one_kind_are_refused(keyed):
    line = f"authorization: Bearer {KEY}"
    assert status_of(keyed.raw(request("/v1/models", line, line, "connection: close"))) == 401


def test_a_key_of_a_megabyte_is_refused_by_the_parser(keyed):
    data = keyed.raw(request("/v1/models", "x-api-key: " + "x" * 2**20))
    assert data == b"" or status_of(data) in (400, 431)


def test_the_key_is_masked_and_never_logged(keyed):
    wrong = "sk-canary-abcdefghijkl-wxyz"
    answer = keyed.get("/v1/models", headers={"authorization": f"Bearer {wrong}"})
    assert answer.error["message"] == "Incorrect API key provided: sk-c****wxyz."
    assert wrong not in keyed.log
    assert KEY not in keyed.log


# --- hosts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.com", 403),
        ("localhost.evil.com", 403),
        ("169.254.169.254", 403),
        ("localhost/v1/models?", 400),
        ("localhost@evil.com", 400),
        ("", 400),
        (None, 400),
        ("localhost:80:80", 400),
    ],
)
def test_a_loopback_listener_answers_to_its_own_names_only(server, host, status):
    data = server.raw(request("/v1/models", "connection: close", host=host))
    assert status_of(data) == status
    assert body_of(data)
    assert b"x-request-id: " in data


def test_two_hosts_are_refused(server):
    assert status_of(server.raw(request("/v1/models", "host: localhost", "connection: close"))) == 400


@pytest.mark.parametrize(
    "path", ["http://localhost/health", "http://evil.com/v1/models", "//v1//models", "/v1/models;x"]
)
def test_odd_targets_open_nothing(keyed, path):
    assert status_of(keyed.raw(request(path, "connection: close"))) == 401


# --- origins -------------------------------------------------------------------------------------------------------


def test_pages_of_this_machine_may_call(server):
    origin = {"origin": "http://localhost:3000"}
    assert server.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == origin["origin"]
    asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization, x-y"}
    answer = server.call("OPTIONS", CHAT, headers=asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == "authorization, x-y"
    assert answer.headers["vary"] == "origin"


def test_preflights_need_no_key_but_everything_else_does(keyed):
    origin = {"origin": "http://127.0.0.1:1", "access-control-request-method": "POST"}
    assert keyed.call("OPTIONS", CHAT, headers=origin).status == 204
    refused(keyed.call("OPTIONS", CHAT), 401)
    refused(keyed.call("OPTIONS", CHAT, headers={"origin": "http://127.0.0.1:1"}), 401)
    denied = keyed.get("/v1/models", headers=origin)
    assert denied.status == 401
    assert denied.headers["access-control-allow-origin"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "http://localhost.evil.com", "http://notlocalhost", "localhost"]
)
def test_other_pages_get_no_permission(server, origin):
    answer = server.get("/v1/models", headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers
    asked = {"origin": origin, "access-control-request-method": "POST"}
    preflight = server.call("OPTIONS", CHAT, headers=asked)
    refused(preflight, 403)
    assert "access-control-allow-origin" not in preflight.headers
    refused(server.post(CHAT, BODY, headers={"origin": origin, "sec-fetch-site": "cross-site"}), 403)


def test_pages_cannot_post_without_asking_first(server):
    before = server.get("/metrics").body
    data = json.dumps(BODY).encode()
    kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp"]
    for kind in [*kinds, "application/json; charset=utf-16", "text/json"]:
        refused(server.post(CHAT, data, headers={"content-type": kind, "origin": "http://evil.com"}), 415)
    refused(server.post("/v1/models/fake/load", b"", headers={"content-type": "text/plain"}), 415)
    refused(server.post(CHAT, data, headers={"sec-fetch-site": "cross-site"}), 403)
    refused(server.post(CHAT, data, headers={"host": "attacker.example"}), 403)
    generated = b'onecard_generation_tokens_total{model_name="fake"}'
    assert [line for line in before.splitlines() if line.startswith(generated)] == [
        line for line in server.get("/metrics").body.splitlines() if line.startswith(generated)
    ]


def test_bodies_are_plain_json(server):
    for encoding in ("gzip", "br", "gzip, gzip", "x"):
        refused(server.post(CHAT, b"\x1f\x8b", headers={"content-encoding": encoding}), 415)
    assert server.post(CHAT, BODY, headers={"content-type": 'application/json; charset="UTF-8"'}).status == 200
    assert server.post(CHAT, BODY, headers={"content-encoding": "identity"}).status == 200


# --- the wire ------------------------------------------------------------------------------------------------------

SECOND = request("/health", "connection: close")
GOOD = json.dumps(BODY).encode()
SMUGGLING = {
    "length and chunks": post(b"0\r\n\r\n" + SECOND, "content-length: 5", "transfer-encoding: chunked"),
    "two lengths": post(b"{}" + SECOND, "content-length: 2", "content-length: 3"),
    "one length twice": post(b"{}" + SECOND, "content-length: 2", "Content-Length: 2"),
    "list of one length": post(b"{}" + SECOND, "content-length: 2, 2"),
    "list of lengths": post(b"{}" + SECOND, "content-length: 2, 3"),
    "signed length": post(b"{}" + SECOND, "content-length: +2"),
    "xchunked": post(b"0\r\n\r\n" + SECOND, "transfer-encoding: xchunked"),
    "chunked twice": post(b"0\r\n\r\n" + SECOND, "transfer-encoding: chunked, chunked"),
    "identity and chunked": post(b"0\r\n\r\n" + SECOND, "transfer-encoding: identity, chunked"),
    "bad chunk size": post(b"xyz\r\n{}\r\n0\r\n\r\n" + SECOND, "transfer-encoding: chunked"),
    "chunk longer than said": post(b"1\r\n{}\r\n0\r\n\r\n" + SECOND, "transfer-encoding: chunked"),
    "bare line feeds": b"GET /v1/models HTTP/1.1\nhost: localhost\n\n" + SECOND,
    "one bare line feed": b"GET /v1/models HTTP/1.1\r\nhost: localhost\nx: y\r\n\r\n" + SECOND,
    "carriage return alone": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: a\rb\r\n\r\n" + SECOND,
    "folded header": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n" + SECOND,
    "space before colon": b"GET /v1/models HTTP/1.1\r\nhost : localhost\r\n\r\n" + SECOND,
    "64 kB header": request("/v1/models", "x: " + "y" * 65536) + SECOND,
    "100000 headers": request("/v1/models", *["a: b"] * 100_000) + SECOND,
    "zero byte": b"GET /v1/models\0 HTTP/1.1\r\nhost: localhost\r\n\r\n" + SECOND,
    "http 0.9": b"GET /v1/models\r\n\r\n" + SECOND,
    "http 3": b"GET /v1/models HTTP/3.0\r\nhost: localhost\r\n\r\n" + SECOND,
    "a body in crumbs": post(b"1\r\n \r\n" * 200_000 + b"0\r\n\r\n" + SECOND, "transfer-encoding: chunked"),
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SECOND,
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECOND,
}


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_what_two_readers_could_take_differently_is_refused_and_closed(server, data):
    received = server.raw(data)
    assert b'{"status":"ok"}' not in received
    assert received.count(b"HTTP/1.1 ") <= 1
    if received:
        assert status_of(received) in (400, 413, 431)
        assert body_of(received).keys() == {"message", "type", "param", "code"}
        assert b"x-request-id: " in received
    assert server.chat().status == 200


def test_a_wish_for_a_websocket_is_answered_as_http_and_tells_the_log_nothing_to_install(server):
    wish = request("/health", "connection: close, upgrade", "upgrade: websocket", "sec-websocket-version: 13")
    assert server.raw(wish).startswith(b"HTTP/1.1 200 OK\r\n")
    assert "uvicorn" not in server.log


def test_a_refusal_of_the_parser_has_a_reason_and_a_log_line_without_what_was_sent(server):
    for data, reason in (
        (b"GET /health HTTP/1.1\nhost: localhost\n\n", "a line of the head does not end in CR LF"),
        (b"GET /health HTTP/1.1\r\nx-api-key sk-in-a-broken-line\r\n\r\n", "illegal header line"),
        (b"GET /health?sk-in-a-broken-line\r\n\r\n" + SECOND, "illegal request line"),
    ):
        assert server.raw(data).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert f'invalid_http peer=127.0.0.1 reason="{reason}"' in server.log
    assert "sk-in-a-broken-line" not in server.log
    assert "Invalid HTTP request received" not in server.log


def test_right_requests_on_one_connection_are_all_answered(server):
    chunked = post(b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD), "transfer-encoding: chunked")
    received = server.raw(chunked + post(GOOD, f"content-length: {len(GOOD)}") + SECOND)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.count(b"echo: hi") == 2


def test_who_sends_too_slowly_is_cut_and_others_are_not(server):
    slow = [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nhost: localhost\r\n", post(b"{", "content-length: 100")]
    slow += [post(b"5\r\n{", "transfer-encoding: chunked"), request(CHAT, "content-length: 9", method="POST") + b"{"]
    connections = [server.connect() for _ in slow]
    for connection, data in zip(connections, slow, strict=True):
        connection.sendall(data)
    body = json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": "!slow 40 500"}], "stream": True}
    ).encode()
    stream = server.connect()
    stream.sendall(post(body, f"content-length: {len(body)}"))
    began = time.monotonic()
    late = server.connect()
    assert says_nothing(late, 8)
    late.sendall(post(b"{", f"content-length: {len(BODY_BYTES)}"))
    answers = []
    for connection in connections:
        connection.settimeout(20)
        answers.append(b"".join(iter(functools.partial(connection.recv, 4096), b"")))
        assert time.monotonic() - began < 20
    assert time.monotonic() - began > 10
    assert [answer[9:12] for answer in answers] == [b"", b"", b"", b"408", b"408", b"415"]
    assert body_of(answers[3])["code"] == "request_too_slow"
    assert says_nothing(late, 2), "a body had only the time that its head left it"
    late.sendall(BODY_BYTES[1:])
    assert status_of(late.recv(4096)) == 200
    received = b""
    while b"[DONE]" not in received:
        more = stream.recv(65536)
        assert more
        received += more
    assert (
        server.log.count("request_too_slow") == len(slow) - 2
    )  # one said nothing, and one had its refusal before its body


def says_nothing(connection: socket.socket, for_s: float) -> bool:
    connection.settimeout(for_s)
    try:
        connection.recv(1)
    except TimeoutError:
        connection.settimeout(20)
        return True
    return False


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "PATCH", "GET"])
def test_other_methods_are_not_allowed(server, method):
    answer = server.call(method, CHAT)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert server.call("CONNECT", CHAT).status == 405


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (CHAT, "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/responses/resp_1", "DELETE, GET, HEAD"),
        ("/v1/responses", "POST"),
    ],
)
def test_every_method_of_a_path_is_told(server, path, allowed):
    told = server.call("OPTIONS", path)
    assert (told.status, told.headers["allow"], told.body) == (204, f"{allowed}, OPTIONS", b"")
    refused_method = server.call("PATCH", path)
    assert refused(refused_method, 405)["message"].endswith(f"Use {allowed}.")
    assert refused_method.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/responses/r?stream=null", "stream"),
        ("/v1/responses/r?stream=false&stream=false", "stream"),
        ("/v1/responses/r?stream=1", "stream"),
        ("/v1/responses/r?stream=true", "stream"),
        ("/v1/responses/r?strem=true", "strem"),
        ("/v1/responses/r/input_items?limit=1&limit=2", "limit"),
        ("/v1/responses/r/input_items?foo=1", "foo"),
        ("/v1/capacity?model=fake&model=fake", "model"),
        ("/v1/capacity?model=fake&context=8&context=8", "context"),
        ("/v1/events?last=1&last=1", "last"),
        ("/props?model=fake&model=fake", "model"),
    ],
)
def test_what_a_query_may_say_is_said_once_and_known(server, path, param):
    wrong = refused(server.get(path), 400)
    assert wrong["param"] == param
    for good in ("?stream=false", "?include=a&include=b", "?include[]=a&include[]=b"):
        assert refused(server.get(f"/v1/responses/r{good}"), 404)["code"] == "not_found"


def test_routers_own_refusals_have_our_shape(server):
    assert refused(server.get("/v1/nope"), 404)["code"] == "unknown_url"
    assert refused(server.get("/redoc"), 404)
    assert refused(server.get("/openapi.yaml"), 404)
    assert refused(server.post("/v1/models"), 405)["code"] == "method_not_allowed"
    assert server.call("HEAD", "/v1/models").body == b""
