"""Models, and every error, in the shape of the SDK that asks: its `anthropic-version` header tells which."""

from __future__ import annotations

import anthropic
import pytest

HEADERS = {"anthropic-version": "2023-06-01"}
NAMES = ["fake", "org/small:Q8"]


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, timeout=20, _strict_response_validation=True
    ) as client:
        yield client


def test_anthropics_sdk_lists_and_finds_models(claude):
    assert [model.id for model in claude.models.list()] == NAMES
    assert [model.id for model in claude.beta.models.list(limit=1)] == NAMES, "page after page"
    for name in ("org/small:Q8", "gpt-4o-mini"):
        found = claude.models.retrieve(name)
        assert (found.type, found.lifecycle) == ("model", "active")
    assert (found.id, found.display_name, found.max_input_tokens) == ("fake", "fake", 4096)
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.models.retrieve("nope")
    assert missing.value.type == "not_found_error"


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ("limit=1", NAMES[:1], True),
        ("limit=1&after_id=fake", NAMES[1:], False),
        ("after_id=org/small:Q8", [], False),
        ("before_id=org/small:Q8", NAMES[:1], False),
        ("limit=1&before_id=org/small:Q8", NAMES[:1], False),
        ("lifecycle[]=retired", [], False),
        ("lifecycle[]=retired&lifecycle[]=active", NAMES, False),
    ],
)
def test_pages_are_what_was_asked_for(server, query, ids, more):
    page = server.get(f"/v1/models?{query}", headers=HEADERS).json()

    assert page.keys() == {"data", "has_more", "first_id", "last_id"}
    assert ([model["id"] for model in page["data"]], page["has_more"]) == (ids, more)
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=nope", "before_id=nope"])
def test_wrong_pages_are_refused_by_name(server, query):
    answer = server.get(f"/v1/models?{query}", headers=HEADERS)

    assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize("path", ["/v1/models/nope", "/nowhere", "/v1/chat/completions", "/v1/responses/resp_1"])
def test_errors_have_the_shape_of_the_one_who_asks(server, path):
    theirs, ours = server.get(path, headers=HEADERS), server.get(path)

    assert theirs.status == ours.status >= 400
    assert theirs.json().keys() == {"type", "error", "request_id"}
    assert theirs.headers["request-id"] == theirs.headers["x-request-id"] == theirs.json()["request_id"]
    assert ours.json().keys() == {"error"}
    assert server.call("HEAD", path, headers=HEADERS).body == b""


def test_a_refused_key_is_told_in_the_same_shape(keyed):
    assert keyed.get("/v1/models", headers=HEADERS).error["type"] == "authentication_error"
    assert keyed.get("/v1/models").json().keys() == {"error"}


def test_openais_clients_read_openais_shape_as_before(server):
    assert server.get("/v1/models").json()["object"] == "list"
    assert server.call("HEAD", "/v1/models", headers=HEADERS).status == 200
