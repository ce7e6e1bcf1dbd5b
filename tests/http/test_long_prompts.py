"""Text that is too long by its bytes alone: refused wherever it stands, before a model is loaded."""

from __future__ import annotations

import pytest

from tests.http.test_attacks import refused
from tests.http.test_operators import moves

LONG = "word " * 1_500_000
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"p": {"type": "string", "description": LONG[:30_000]}}}


def function(**fields: object) -> list[dict[str, object]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


CHATS = {
    "user": {"messages": [{"role": "user", "content": LONG}]},
    "system": {"messages": [{"role": "system", "content": LONG}, USER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG[:100_000]}] * 70}]},
    "a tool's description": {"messages": [USER], "tools": function(description=LONG)},
    "a tool's schema": {"messages": [USER], "tools": function(parameters=SCHEMA)},
    "a tool's result": {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": LONG},
        ]
    },
    "a call's arguments": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": f'{{"a":"{LONG}"}}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ]
    },
    "many messages": {"messages": [{"role": "user", "content": LONG[:2000]}] * 3500},
}
ANTHROPIC_TOOL = {"name": "f", "input_schema": {"type": "object"}, "description": LONG}
OTHERS = {
    "messages, system": ("/v1/messages", {"system": LONG, "messages": [USER], "max_tokens": 1}),
    "messages, blocks": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}], "max_tokens": 1},
    ),
    "messages, tools": ("/v1/messages", {"messages": [USER], "tools": [ANTHROPIC_TOOL], "max_tokens": 1}),
    "messages, many": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": LONG[:2000]}] * 3500, "max_tokens": 1},
    ),
    "responses": ("/v1/responses", {"input": LONG}),
    "responses, many": ("/v1/responses", {"input": [{"role": "user", "content": LONG[:2000]}] * 3500}),
    "responses, instructions": ("/v1/responses", {"input": "hi", "instructions": LONG}),
    "responses, tools": (
        "/v1/responses",
        {"input": "hi", "tools": [{"type": "function", "name": "f", "description": LONG, "parameters": {}}]},
    ),
    "completions": ("/v1/completions", {"prompt": LONG}),
    "infill": ("/infill", {"input_prefix": LONG, "input_suffix": ""}),
}
COUNTS = {
    "messages, count": ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": LONG}]}),
    "messages, count of tools": ("/v1/messages/count_tokens", {"messages": [USER], "tools": [ANTHROPIC_TOOL]}),
    "responses, count": ("/v1/responses/input_tokens", {"input": LONG}),
    "tokenize": ("/tokenize", {"content": LONG}),
    "tokenize, messages": ("/tokenize", {"messages": [{"role": "user", "content": LONG}]}),
    "tokenize, tools": ("/tokenize", {"messages": [USER], "tools": function(description=LONG)}),
}
ASKED = {f"chat, {name}": ("/v1/chat/completions", body) for name, body in CHATS.items()} | OTHERS


@pytest.mark.parametrize(("path", "body"), ASKED.values(), ids=ASKED)
def test_what_cannot_fit_is_refused_wherever_it_stands(server, path, body):
    before = moves(server)
    wrong = refused(server.post(path, {"model": "org/small:Q8", **body}), 400)
    assert wrong["code"] == "context_length_exceeded"
    assert "resulted in at least" in wrong["message"]
    assert moves(server) == before, "a model was loaded"


@pytest.mark.parametrize(("path", "body"), COUNTS.values(), ids=COUNTS)
def test_more_text_than_any_context_holds_is_not_counted(server, path, body):
    before = moves(server)
    wrong = refused(server.post(path, {"model": "org/small:Q8", **body}), 400)
    assert wrong["code"] == "string_above_max_length"
    assert moves(server) == before, "a model was loaded"


def test_reasoning_of_earlier_turns_is_not_counted_because_templates_leave_it_out(server):
    turns = [USER, {"role": "assistant", "content": "ok", "reasoning_content": LONG[: 64 * 40]}, USER]
    assert server.post("/v1/chat/completions", {"model": "fake", "messages": turns}).status == 200
