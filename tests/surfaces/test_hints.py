"""Errors say what to do: the words of the next step stand in the message."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.test_attacks import refused

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "hi"}]
BASES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake", "messages": USER},
    COMPLETIONS: {"model": "fake", "prompt": "hi"},
    RESPONSES: {"model": "fake", "input": "hi"},
    MESSAGES: {"model": "fake", "max_tokens": 9, "messages": USER},
}
FUNCTION_NAME = "Expected a string that matches the pattern '^[a-zA-Z0-9_-]{1,256}$'."
FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a function's name": (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, FUNCTION_NAME),
    "a function's name in responses": (RESPONSES, {"tools": [{"type": "function", "name": "a b"}]}, FUNCTION_NAME),
    "a function's name in messages": (MESSAGES, {"tools": [{"name": "a b", "input_schema": {}}]}, FUNCTION_NAME),
    "a schema's name": (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "matches the pattern '^[a-zA-Z0-9_-]{1,256}$'.",
    ),
    "functions": (CHAT, {"functions": [{"name": "f"}]}, "use 'tools'."),
    "a function call": (CHAT, {"function_call": "auto"}, "use 'tool_choice'."),
    "a grammar": (CHAT, {"grammar": "root ::= x"}, "use 'response_format', 'guided_regex' or 'guided_choice'."),
    "a grammar for a text": (COMPLETIONS, {"guided_grammar": "x"}, "use 'response_format', 'guided_regex'"),
    "a conversation": (RESPONSES, {"conversation": "conv_1"}, "use 'previous_response_id'."),
    "a stored prompt": (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "use 'instructions' and 'input'."),
    "two structures": (
        CHAT,
        {"structured_outputs": {"json": {"type": "integer"}, "regex": "a"}},
        "it takes one of 'json', 'regex', 'choice', 'json_object'.",
    ),
}
URLS = {
    ("POST", "/chat/completions"): "The base URL ends in /v1: ask for /v1/chat/completions.",
    ("POST", "/v1/v1/messages"): "The path says /v1 twice: leave it out of the base URL.",
    ("POST", "/v1/chat/completions/"): "Ask for /v1/chat/completions, without the slash.",
    ("POST", "/api/create"): "tags, show, ps, pull and version.",
    ("GET", "/v1/threads"): "GET /openapi.json lists what there is.",
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_refused_field_says_what_to_send(server, name):
    path, fields, words = FIELDS[name]
    assert words in refused(server.post(path, {**BASES[path], **fields}))["message"]


@pytest.mark.parametrize(("method", "path"), URLS)
def test_a_wrong_path_says_where_to_go(server, method, path):
    assert server.call(method, path, {}).error["message"].endswith(URLS[method, path])


def test_a_wrong_method_says_the_right_one(server):
    assert server.get(CHAT).error["message"] == "Method not allowed: GET /v1/chat/completions. Use POST."


def test_an_unknown_model_says_which_there_are(server):
    known = [model["id"] for model in server.get("/v1/models").json()["data"]]
    message = server.post(CHAT, {**BASES[CHAT], "model": "gpt-4o"}).error["message"]
    assert message.startswith("The model `gpt-4o` does not exist or you do not have access to it.")
    assert known
    assert all(f"`{name}`" in message for name in known[:8])
