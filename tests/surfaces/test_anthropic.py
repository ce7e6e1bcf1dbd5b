"""`/v1/messages` with Anthropic's own client, strict about every object it receives, over a real socket."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import pytest

from tests.present import present
from tests.surfaces.conftest import events_of

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS: list[dict[str, Any]] = [
    {"name": "weather", "description": "tells", "input_schema": {"type": "object", "properties": {}}},
    {"type": "web_search_20250305", "name": "web_search"},
]
PREFILL = {"role": "assistant", "content": "It is"}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}]}
THOUGHT = "!say <think>\nwell now\n</think>\n\nyes"


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, timeout=20, _strict_response_validation=True
    ) as client:
        yield client


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def test_a_message_is_answered(claude):
    message = claude.messages.create(model="gpt-4o-mini", max_tokens=100, messages=user("hello world"))

    assert [block.text for block in message.content] == ["echo: hello world"]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "fake")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 3)


def test_a_stream_has_its_events_in_order(claude, server):
    with claude.messages.stream(model="fake", max_tokens=100, messages=user("a b")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == "echo: a b"
    assert (final.usage.input_tokens, final.usage.output_tokens, final.stop_reason) == (3, 3, "end_turn")

    body = server.post(
        "/v1/messages?beta=true", {"model": "fake", "max_tokens": 9, "messages": user("a b"), "stream": True}
    ).body
    events = events_of(body)
    assert all(name == data["type"] for name, data in events)
    kinds = [name for name, _ in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_system_blocks_and_every_kind_of_turn_reach_the_model(claude):
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=00000;"},
        {"type": "text", "text": "ss", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "tt"},
    ]
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "aa"}, {"type": "text", "text": "bb"}]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "cc"}],
        },
        *user("!say ok"),
    ]

    message = claude.messages.create(model="fake", max_tokens=9, system=system, messages=turns)

    said = "ss\n\ntt\naa\nbb\ncc\n!say ok"
    assert message.usage.input_tokens == len(said)
    assert claude.messages.count_tokens(model="fake", system=system, messages=turns).input_tokens == len(said)
    assert claude.messages.count_tokens(model="fake", system="ss", messages=user("a"), tools=TOOLS).input_tokens == 4


def test_a_tool_loop_goes_there_and_back(claude):
    turns = user(f"!say Sure. {CALL}{CALL}")
    first = claude.messages.create(model="fake", max_tokens=100, messages=turns, tools=TOOLS)

    text, call, other = first.content
    assert (first.stop_reason, text.text, call.type, call.name, call.input) == (
        "tool_use",
        "Sure.",
        "tool_use",
        "weather",
        {"city": "Paris"},
    )
    assert call.id != other.id
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"},
        {
            "type": "tool_result",
            "tool_use_id": other.id,
            "content": [{"type": "text", "text": "dry"}],
            "is_error": True,
        },
    ]
    turns += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = claude.messages.create(model="fake", max_tokens=100, messages=turns, tools=TOOLS)
    assert second.content[0].text == "echo: Error: dry"
    turns[-1]["content"].append({"type": "text", "text": "and now?"})
    third = claude.messages.create(model="fake", max_tokens=100, messages=turns, tools=TOOLS)
    assert third.content[0].text == "echo: and now?"


def test_a_call_that_is_cut_has_the_values_that_are_whole(claude):
    """As the SDK itself reads what was streamed."""
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>'
    ask = {"model": "fake", "max_tokens": 6, "messages": user(f"!say {call}"), "tools": TOOLS}
    with claude.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()

    for message in (claude.messages.create(**ask), streamed):
        (block,) = message.content
        assert (block.name, block.input, message.stop_reason) == ("weather", {"city": "Paris"}, "max_tokens")


def test_a_streamed_call_comes_as_partial_json(claude):
    with claude.messages.stream(model="fake", max_tokens=99, messages=user(f"!say {CALL}"), tools=TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_message()

    parts = [e.delta.partial_json for e in events if e.type == "content_block_delta"]
    assert json.loads("".join(parts)) == {"city": "Paris"}
    assert [(block.type, block.input) for block in final.content] == [("tool_use", {"city": "Paris"})]
    assert final.stop_reason == "tool_use"


def test_thinking_is_a_block_of_its_own(claude):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = claude.messages.create(model="fake", max_tokens=2048, messages=user(THOUGHT), thinking=thinking)
    assert [(b.type, getattr(b, b.type)) for b in message.content] == [("thinking", "well now"), ("text", "yes")]
    with claude.messages.stream(model="fake", max_tokens=99, messages=user(THOUGHT)) as stream:
        deltas = [e.delta for e in stream if e.type == "content_block_delta"]
    assert "".join(d.thinking for d in deltas if d.type == "thinking_delta") == "well now"
    assert [d.signature for d in deltas if d.type == "signature_delta"] == ["onecard"]


def test_how_an_answer_ended_is_told(claude):
    cut = claude.messages.create(model="fake", max_tokens=3, messages=user("!long 50"))
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", "0 1 2")
    assert claude.messages.create(model="fake", max_tokens=32_000, messages=user("hi")).stop_reason == "end_turn"
    stopped = claude.messages.create(model="fake", max_tokens=99, messages=user("!long 50"), stop_sequences=["x"])
    assert stopped.stop_sequence is None


def test_what_claude_code_sends_is_accepted_and_what_has_no_effect_is_named(server):
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,x", "x-api-key": "any"}
    body = {
        "model": "fake",
        "max_tokens": 32000,
        "temperature": 1,
        "stream": True,
        "metadata": {"user_id": "u"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "system": [{"type": "text", "text": "You are", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "tools": [{**TOOLS[0], "eager_input_streaming": True, "cache_control": {"type": "ephemeral"}}, TOOLS[1]],
        "tool_choice": {"type": "auto"},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}
        ],
    }

    answer = server.post("/v1/messages?beta=true", body, headers=headers)

    assert answer.status == 200, answer
    assert answer.headers["x-onecard-ignored"] == "context_management, tools[web_search_20250305]"


UNSERVED = ("bash_20250124", "text_editor_20250728", "memory_20250818", "computer_20250124", "warp")
WRONG = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
        "messages[0].content[0].source.type",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}],
                }
            ]
        },
        "messages[0].content[0].content[0].source",
    ),
    ({"messages": [*user("a"), PREFILL], "thinking": {"type": "enabled", "budget_tokens": 1024}}, "messages"),
    (
        {"messages": [*user("a"), PREFILL], "output_config": {"format": {"type": "json_schema", "schema": {}}}},
        "messages",
    ),
    ({"messages": [*user("a"), USE], "tools": TOOLS}, "messages"),
    ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
    *(
        ({"messages": [{"role": "user", "content": [{"type": kind}]}]}, "messages[0].content[0].type")
        for kind in ("document", "warp", "input_file", "Tool_Result", "")
    ),
    ({"messages": [7]}, "messages[0]"),
    ({"system": 3}, "system"),
    ({"system": [{"type": "text"}]}, "system[0].text"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"$ref": "#"}}}},
        "output_config.format.schema.$ref",
    ),
    ({"tool_choice": {"type": "tool", "name": "absent"}, "tools": TOOLS}, "tool_choice"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": -0.2}, "top_p"),
    ({"top_k": "7"}, "top_k"),
    ({"stream": 1}, "stream"),
    ({"thinking": {"type": "hard"}}, "thinking.type"),
    ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0].name"),
    ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
    ({"tools": "x"}, "tools"),
    *(({"tools": [*TOOLS, {"type": kind, "name": "x"}]}, f"tools[{len(TOOLS)}].type") for kind in UNSERVED),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[f"{i} {param}" for i, (_, param) in enumerate(WRONG)])
def test_wrong_values_are_refused_with_their_name(server, fields, param):
    answer = server.post("/v1/messages", {"model": "fake", "max_tokens": 9, "messages": user("x"), **fields})

    assert answer.status == 400
    body = answer.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["param"] == param
    assert body["request_id"] == answer.headers["x-request-id"]


def told(problem: anthropic.APIStatusError) -> dict[str, Any]:
    body: Any = problem.body
    return body["error"]


def test_errors_have_the_clients_own_classes(claude, keyed, server):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="nope", max_tokens=9, messages=user("x"))
    assert told(missing.value)["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as long:
        claude.messages.create(model="fake", max_tokens=9, messages=user("x" * 5000))
    # The expression by which Claude Code finds both numbers, from its own package.
    words = r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)"
    found = present(re.search(words, told(long.value)["message"], re.IGNORECASE))
    assert (int(found[1]), int(found[2])) == (5000, 4096)
    with anthropic.Anthropic(base_url=keyed.url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger.messages.create(model="fake", max_tokens=9, messages=user("x"))
        assert told(refused.value)["type"] == "authentication_error"
    with anthropic.Anthropic(base_url=keyed.url, api_key="sk-canary-0123456789-key", max_retries=0) as friend:
        assert friend.messages.create(model="fake", max_tokens=9, messages=user("x")).stop_reason == "end_turn"
    assert server.post("/v1/messages", b"{").json()["type"] == "error"
    assert server.get("/v1/messages").json()["error"]["type"] == "invalid_request_error"


def test_a_crash_ends_the_stream_with_an_error(claude, server):
    asked = {"model": "org/small:Q8", "max_tokens": 9}
    assert claude.messages.create(**asked, messages=user("x")).stop_reason  # or the model is put aside
    with pytest.raises(anthropic.APIStatusError):
        list(claude.messages.create(**asked, messages=user("!crash"), stream=True))
    assert claude.messages.create(**asked, messages=user("x")).stop_reason
    events = events_of(server.post("/v1/messages", {**asked, "messages": user("!crash"), "stream": True}).body)
    assert events[-1][0] == "error"
    assert (events[-1][1]["error"]["type"], events[-1][1]["error"]["code"]) == ("api_error", "worker_crashed")
    assert claude.messages.create(**asked, messages=user("x")).stop_reason


def test_waiting_and_silence_are_bridged_with_pings(small):
    body = {"model": "slow", "max_tokens": 9, "messages": user("hi"), "stream": True}
    small.post("/v1/models/slow/unload", {})
    kinds = [name for name, _ in events_of(small.post("/v1/messages", body).body)]
    assert kinds[0] == "ping"
    assert next(kind for kind in kinds if kind != "ping") == "message_start"
    body = {"model": "fake", "max_tokens": 9, "messages": user("!slow 300 3"), "stream": True}
    kinds = [name for name, _ in events_of(small.post("/v1/messages", body).body)]
    assert "ping" in kinds[kinds.index("message_start") :]
    assert kinds[-1] == "message_stop"
