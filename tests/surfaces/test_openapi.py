"""`/openapi.json` is true: it names every route, and what it says of a body is what the server accepts."""

from __future__ import annotations

import copy
import json
import re
from typing import Any, Final

import jsonschema
import openai
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.app import create_app
from server.routes.table import SURFACES
from server.settings.config import Settings
from tests.http.conftest import settings as server_settings
from tests.present import present
from tests.surfaces.test_infill import LLAMA_VIM
from tests.surfaces.test_wrong_responses import RIGHT

USER = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "fake",
        "messages": [
            *USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}],
        "stop": "x",
        "stream": False,
        "logit_bias": {"5": 1},
    },
    "/v1/completions": {"model": "fake", "prompt": ["a", [1, 2]], "max_tokens": 3, "keep_alive": "5m"},
    "/v1/responses": {
        "model": "fake",
        "input": [
            *USER,
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": PARAMETERS}],
        "text": {"format": {"type": "text"}},
        "metadata": {"a": "b"},
        "store": False,
    },
    "/v1/responses/input_tokens": {"model": "fake", "input": "hi", "instructions": "be"},
    "/v1/messages": {
        "model": "fake",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "x"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}]},
        ],
        "tools": [{"name": "f", "input_schema": PARAMETERS}],
        "thinking": {"type": "disabled"},
        "stop_sequences": ["x"],
    },
    "/v1/messages/count_tokens": {"model": "fake", "messages": USER},
    "/infill": LLAMA_VIM,
    "/tokenize": {"model": "fake", "content": "x", "with_pieces": True},
    "/detokenize": {"model": "fake", "tokens": [1, 2]},
    "/api/chat": {
        "model": "fake",
        "messages": [
            *USER,
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "x", "tool_name": "f"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}],
        "format": "",
        "think": False,
        "options": {"stop": "x", "num_predict": 9},
        "keep_alive": "5m",
        "logprobs": True,
    },
    "/api/generate": {"model": "fake", "prompt": "x", "system": "be", "format": {}, "options": {"seed": -1}},
    "/api/embed": {"model": "fake", "input": ["a", "b"], "truncate": True, "dimensions": 2},
    "/api/embeddings": {"model": "fake", "prompt": "a"},
    "/api/show": {"name": "fake", "verbose": False},
    "/api/pull": {"model": "fake", "stream": False},
}


STREAMING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/infill")


@pytest.fixture(scope="module")
def document(server) -> dict:
    answer = server.get("/openapi.json")
    assert answer.status == 200
    return answer.json()


def test_it_names_every_route_and_no_other(document, canary_path):
    app = create_app(Settings.model_validate(server_settings(canary_path)))
    served = {
        (method, re.sub(r"{(\w+):path}", r"{\1}", route.path))
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in present(route.methods)
        if route.include_in_schema and method != "HEAD"
    }

    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    assert described == served


def test_everything_it_refers_to_is_there(document):
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [
        *("fake", "org/small:Q8", "gpt-4o-mini")
    ]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.path)
def test_it_has_every_field_that_is_known(document, surface):
    properties = document["components"]["schemas"][f"{surface.name}Request"]["properties"]
    assert set(surface.fields) <= set(properties)


OPEN = ("ResponseEvent", "MessageEvent", "InfillObject")
"""Objects that hold more than is described: events of two surfaces, and what an editor asks for by its path."""


def strict(document: dict) -> dict:
    """The same, where objects hold nothing that is not described."""
    document = copy.deepcopy(document)
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema and name not in OPEN:
            schema.setdefault("additionalProperties", False)
    return document


def wrong_with(document: dict, path: str, answer) -> list[str]:
    """What the description finds wrong with an answer."""
    method = answer.method.lower()
    content = document["paths"][path][method]["responses"]["200" if answer.status == 200 else "default"]["content"]
    media = answer.headers["content-type"].partition(";")[0]
    judge = jsonschema.Draft202012Validator({**content[media]["schema"], "components": document["components"]})
    if media == "text/event-stream":
        lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
        sent = [json.loads(line) for line in lines if line != "[DONE]"]
        assert sent
    elif media == "application/x-ndjson":
        sent = [json.loads(line) for line in answer.body.decode().splitlines()]
        assert sent
    else:
        sent = [answer.json() if media == "application/json" else answer.body.decode()]
    return [error.message for one in sent for error in judge.iter_errors(one)]


JOBS_OWN: Final = ("", "/events", "/checkpoints")
KEPT = ("/v1/batches", "/v1/memory/lease", "/v1/memory/lease/{id}")
"""What takes the id of something that is there, see `kept`, or more memory than the fake has."""
OTHERS = [
    s for s in SURFACES if s.path in ("/v1/audio/speech", "/v1/images/generations", "/v1/fine_tuning/jobs", *KEPT)
]
"""What the fake does not answer; `tests/speech` asks a voice, `tests/draw` a model that draws."""
ASKED: dict[tuple[str, str | None], dict[str, Any]] = {
    **{(path, None): body for path, body in BODIES.items()},
    **{(path, "streamed"): {**body, "stream": True} for path, body in BODIES.items() if path in STREAMING},
    **{
        (s.path, "example"): {**({"model": "fake"} if s.asks_model else {}), **s.example}
        for s in SURFACES
        if s not in OTHERS
    },
    ("/v1/memory/lease", "of a megabyte"): {"bytes": "1MiB", "seconds": 1},
    ("/v1/chat/completions", "a call"): {
        "model": "fake",
        "messages": [{"role": "user", "content": '!say <tool_call>{"name": "f", "arguments": {}}</tool_call>'}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}],
        "logprobs": True,
        "top_logprobs": 2,
    },
    ("/v1/completions", "scored"): {"model": "fake", "prompt": "x", "logprobs": 2, "echo": True},
    ("/v1/embeddings", "base64"): {"model": "fake", "input": "x", "encoding_format": "base64"},
    ("/v1/rerank", "with texts"): {"model": "fake", "query": "x", "documents": ["y"], "return_documents": True},
    ("/v1/chat/completions", "wrong"): {"model": "nope", "messages": USER},
    ("/v1/messages", "wrong"): {"model": "fake", "messages": USER},
}


@pytest.mark.parametrize(("path", "case"), ASKED, ids=lambda value: str(value))
def test_what_is_answered_is_what_is_described(server, document, path, case):
    answer = server.post(path, ASKED[path, case])
    assert answer.status == (400 if case == "wrong" and "messages" in path else 404 if case == "wrong" else 200), answer
    assert wrong_with(strict(document), path, answer) == []


@pytest.fixture(scope="module")
def kept(server) -> dict[str, str]:
    """Ids of what a client has made, by what it is."""
    response = server.post("/v1/responses", BODIES["/v1/responses"] | {"store": True}).json()
    chat: Final = "/v1/chat/completions"
    line = {"custom_id": "a", "method": "POST", "url": chat, "body": {"model": "fake", "messages": USER}}
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=20)
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=chat, completion_window="24h")
    return {"responses": response["id"], "files": file.id, "batches": batch.id}


READ_ELSEWHERE = ("/v1/events", "/v1/images/files/{id}", *(f"/v1/fine_tuning/jobs/{{id}}{of}" for of in JOBS_OWN))
"""A stream without an end; an image, which `tests/draw` has; a job, which `tests/tuning` has."""


def test_what_is_read_is_what_is_described(server, document, kept):
    reads = [path for path, methods in document["paths"].items() if "get" in methods and path not in READ_ELSEWHERE]
    for path in reads:
        query = "?model=fake" if path == "/v1/capacity" else ""
        made = next((kept[word] for word in path.split("/") if word in kept), "fake")
        answer = server.get(path.replace("{id}", made) + query)
        assert answer.status == 200, path
        assert wrong_with(strict(document), path, answer) == [], path
    for verb in ("load", "unload"):
        path = f"/v1/models/{{id}}/{verb}"
        assert wrong_with(strict(document), path, server.post(path.replace("{id}", "fake"), {})) == []
    for path in ("/v1/models", "/v1/models/{id}"):
        answer = server.get(path.replace("{id}", "fake"), headers={"anthropic-version": "2023-06-01"})
        assert wrong_with(strict(document), path, answer) == []
    gone = server.call("DELETE", f"/v1/responses/{kept['responses']}")
    assert wrong_with(strict(document), "/v1/responses/{id}", gone) == []


def problems_of(document: dict, path: str, body: dict) -> list[str]:
    """What the description finds wrong with a body."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    judge = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    return [error.message for error in judge.iter_errors(body)]


@pytest.mark.parametrize("path", BODIES)
def test_right_bodies_are_right_for_both(server, document, path):
    assert server.post(path, BODIES[path]).status == 200
    assert problems_of(document, path, BODIES[path]) == []


@pytest.mark.parametrize("fields", RIGHT, ids=range(len(RIGHT)))
def test_odd_responses_are_right_for_the_description_too(document, fields):
    assert problems_of(document, "/v1/responses", {"model": "fake", "input": USER, **fields}) == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"temperature": 2.5}),
        ("/v1/responses", {"background": True}),
        ("/v1/responses", {"model": "nope"}),
        ("/v1/messages", {"max_tokens": -1}),
        ("/v1/messages", {"thinking": {"type": "hard"}}),
        ("/v1/chat/completions", {"stop": [1]}),
        ("/infill", {"n_predict": -2}),
    ],
)
def test_wrong_bodies_are_wrong_for_both(server, document, path, fields):
    assert server.post(path, {**BODIES[path], **fields}).status in (400, 404)
    assert problems_of(document, path, {**BODIES[path], **fields}) != []


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Where something can be put in a body: every key and item, however deep."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in children for place in [(*path, key), *places(child, (*path, key))]]


@given(data=st.data(), path=st.sampled_from(sorted(BODIES)))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_change_of_a_body_is_the_servers_fault(server, data, path):
    body = copy.deepcopy(BODIES[path])
    for _ in range(data.draw(st.integers(1, 3))):
        target: Any = body
        place = data.draw(st.sampled_from(places(body) or [("x",)]))
        for step in place[:-1]:
            target = target[step]
        if isinstance(target, dict) and data.draw(st.booleans()):
            target[data.draw(st.text(max_size=8))] = data.draw(VALUES)
        else:
            target[place[-1]] = data.draw(VALUES)

    answer = server.post(path, json.dumps(body).encode(), timeout=10)

    assert answer.status < 500, (path, body, answer)
    assert answer.status != 422
    if answer.status != 200:
        assert {"message", "type", "param", "code"} <= answer.error.keys()
