"""Who may speak: pure checks over raw header bytes."""

from __future__ import annotations

import pytest

from server.door.access import HostRule, KeyRing, OriginRule, masked, request_id

GOOD_HOSTS = [
    b"localhost",
    b"localhost:8080",
    b"localhost:",
    b"[::1]:",
    b"127.0.0.1:",
    b"LOCALHOST",
    b"127.0.0.1:8080",
    b"127.8.9.1",
    b"[::1]:8080",
    b"[::1]",
    b"app.localhost:1",
]
BAD_HOSTS = [
    (b"evil.com", 403), (b"localhost.evil.com", 403), (b"notlocalhost", 403), (b"10.0.0.1", 403), (b"[::2]", 403),
    (b"0.0.0.0", 403), (b"2130706433", 403),
    (b"localhost/v1/models?", 400), (b"localhost:80:80", 400), (b"localhost:99999", 400), (b"user@localhost", 400),
    (b"", 400), (b"localhost\xff", 400), (b" localhost", 400), (b"localhost,evil.com", 400), (b"::1", 400),
    (b"local host", 400), (b"localhost#", 400),
]  # fmt: skip


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_names_of_this_machine_are_served(host):
    assert HostRule("127.0.0.1").refusal([(b"host", host)]) is None


@pytest.mark.parametrize(("host", "status"), BAD_HOSTS)
def test_other_names_are_refused_on_a_loopback_listener(host, status):
    refusal = HostRule("127.0.0.1").refusal([(b"host", host)])
    assert refusal is not None
    assert refusal[0] == status


def test_exactly_one_host_is_needed():
    assert HostRule("127.0.0.1").refusal([]) is not None
    assert HostRule("127.0.0.1").refusal([(b"host", b"localhost")] * 2) is not None


def test_a_public_listener_takes_any_well_formed_name():
    assert HostRule("0.0.0.0").refusal([(b"host", b"llm.example:443")]) is None
    assert HostRule("0.0.0.0").refusal([(b"host", b"a/b")]) is not None


@pytest.mark.parametrize("bound_to", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("host", "answered"),
    [
        (b"llm.home.lan", True),
        (b"LLM.home.lan:8080", True),
        (b"llm.home.lan.", True),
        (b"a.docker.internal", True),
        (b"b.a.docker.internal:1", True),
        (b"onecard", True),
        (b"localhost", True),
        (b"home.lan", False),
        (b"evil.home.lan", False),
        (b"docker.internal", False),
        (b".docker.internal", False),
        (b"evil-docker.internal", False),
        (b"llm.home.lan.evil.com", False),
        (b"onecard.evil.com", False),
        (b".", False),
    ],
)
def test_allowed_names_are_answered_and_no_others(bound_to, host, answered):
    rule = HostRule(bound_to, ("llm.home.lan", "*.docker.internal", "onecard"))
    assert (rule.refusal([(b"host", host)]) is None) is answered


def test_a_public_listener_with_allowed_names_still_answers_to_addresses():
    rule = HostRule("0.0.0.0", ("llm.home.lan",))
    assert rule.refusal([(b"host", b"10.0.0.7:8080")]) is None
    assert HostRule("127.0.0.1", ("llm.home.lan",)).refusal([(b"host", b"10.0.0.7:8080")]) is not None


def test_a_refused_name_is_told_the_setting():
    status, sentence = HostRule("127.0.0.1").refusal([(b"host", b"llm.home.lan")]) or (0, "")
    assert status == 403
    assert "--allowed-host llm.home.lan" in sentence
    assert "[server]" in sentence


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"http://localhost:3000", True),
        (b"https://localhost", True),
        (b"http://127.0.0.1:5173", True),
        (b"http://[::1]:1", True),
        (b"https://app.example", True),
        (b"https://app.example:444", False),
        (b"http://evil.com", False),
        (b"null", False),
        (b"http://localhost.evil.com", False),
        (b"http://notlocalhost", False),
        (b"http://localhost@evil.com", False),
        (b"http://localhost/x", False),
        (b"file://localhost", False),
        (b"", False),
        (b"http://localhost\xff", False),
    ],
)
def test_pages_of_this_machine_and_configured_ones_may_read(origin, allowed):
    assert OriginRule(("localhost", "https://app.example")).allows(origin) is allowed


def test_a_star_allows_every_page():
    assert OriginRule(("*",)).allows(b"https://any.example")
    assert not OriginRule(()).allows(b"http://localhost")


KEY = "sk-0123456789abcdefghij"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + KEY.encode())],
        [(b"authorization", b"bearer " + KEY.encode())],
        [(b"x-api-key", KEY.encode())],
        [(b"api-key", KEY.encode())],
        [(b"x-api-key", KEY.encode()), (b"authorization", b"BEARER  " + KEY.encode())],
    ],
)
def test_a_right_key_opens_in_every_place_clients_put_it(headers):
    assert KeyRing([KEY, "other"]).refusal(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic " + KEY.encode())],
        [(b"authorization", KEY.encode())],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer \xff\xfe\xc3")],
        [(b"authorization", b"Bearer " + KEY.encode())] * 2,
        [(b"authorization", b"Bearer wrong"), (b"x-api-key", KEY.encode())],
        [(b"x-api-key", b"x" * 2**20)],
        [(b"x-api-key", KEY.encode() + b" ")],
        [(b"x-api-key", KEY[:-1].encode())],
    ],
)
def test_anything_else_is_refused_without_quoting_the_key(headers):
    sentence = KeyRing([KEY]).refusal(headers)
    assert sentence is not None
    assert KEY not in sentence
    assert len(sentence) < 200


def test_no_key_configured_means_none_needed():
    ring = KeyRing([])
    assert not ring.required
    assert ring.refusal([(b"authorization", b"Bearer \xff")]) is None


def test_keys_are_masked():
    assert masked(b"abcd1234567890wxyz") == "abcd****wxyz"
    assert masked(b"short") == "****"
    assert masked(b"\xff" * 40) == "****"


def test_request_ids_of_clients_are_kept_only_when_plain():
    assert request_id([(b"x-request-id", b"abc-1.2:3")]) == "abc-1.2:3"
    for bad in (b"", b"x" * 10_000, b"a b", b"a\r\nb", b"\xff", b'"'):
        assert request_id([(b"x-request-id", bad)]).startswith("req_")
    assert request_id([(b"x-request-id", b"a")] * 2).startswith("req_")
    assert request_id([]) != request_id([])
