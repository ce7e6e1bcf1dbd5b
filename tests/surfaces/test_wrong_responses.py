"""Wrong values on `/v1/responses`: each is refused under the name the client used, or served where it is right."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
from openai.types.responses import ResponseInputItemParam

SERVED = {
    "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
    "item_reference", "compaction", "image_generation_call",
}  # fmt: skip
NAMED = {"mcp_list_tools", "web_search_call"}


def words(hint: object) -> set[str]:
    """The literals within a type."""
    return {hint} if isinstance(hint, str) else {word for part in get_args(hint) for word in words(part)}


PUBLISHED = {word for item in get_args(ResponseInputItemParam) for word in words(get_type_hints(item)["type"])}
UNSERVED = sorted({"input_file", "input_image", "input_audio", "warp", *PUBLISHED} - SERVED - NAMED)
USER = [{"role": "user", "content": "hi"}]
NO_KINDS: tuple[object, ...] = ([], {}, 7, None)


def part(kind: str, **fields) -> list:
    return [{"role": "user", "content": [{"type": kind, **fields}]}]


def function(**fields) -> list:
    return [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, **fields}]


WRONG = [
    ({"input": 7}, "input"),
    ({"input": {"role": "user"}}, "input"),
    ({"input": [7]}, "input[0]"),
    ({"input": [{"role": "root", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": None}]}, "input[0].content"),
    ({"input": part("input_text")}, "input[0].content[0].text"),
    ({"input": part("input_image", image_url="http://127.0.0.1:1/x.png")}, "input[0].content[0].image_url"),
    ({"input": part("input_file", file_url="file:///etc/passwd")}, "input[0].content[0].type"),
    ({"input": part("input_audio", input_audio={})}, "input[0].content[0].input_audio.format"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input[0].output"),
    ({"input": [{"type": "custom_tool_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
    *(
        ({"input": [{"role": "user", "content": "hi"}, {"type": kind, "id": "x"}]}, "input[1].type")
        for kind in UNSERVED
    ),
    *(({"tools": [*function(), {"type": kind}]}, "tools[1].type") for kind in ("file_search", "mcp", "shell", "warp")),
    *(({"tools": [*function(), {"type": kind}]}, "tools[1].type") for kind in NO_KINDS),
    ({"input": [*USER] * 5000}, "input"),
    ({"instructions": ["x"]}, "instructions"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"previous_response_id": 7}, "previous_response_id"),
    ({"store": "no"}, "store"),
    ({"stream": "yes"}, "stream"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 2**31}, "max_output_tokens"),
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.2}, "top_p"),
    ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": ["everything"]}, "include[0]"),
    ({"truncation": "maybe"}, "truncation"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {"k": "v" * 16384}}, "metadata"),
    ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "novel"}}, "reasoning.summary"),
    ({"text": {"format": {"type": "sound"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": 123}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"$ref": "#"}}}}, "text.format.schema.$ref"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"tools": "x"}, "tools"),
    ({"tools": [7]}, "tools[0]"),
    ({"tools": function(name="a b")}, "tools[0].name"),
    ({"tools": function(name="x" * 500)}, "tools[0].name"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": function(parameters={"type": "hiccup"})}, "tools[0].parameters.type"),
    ({"tools": function() * 2}, "tools"),
    ({"tools": function() * 129}, "tools"),
    ({"tool_choice": "sometimes", "tools": function()}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "absent"}, "tools": function()}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"moderation": {"model": "omni"}}, "moderation"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[f"{i} {param}" for i, (_, param) in enumerate(WRONG)])
def test_wrong_values_are_refused_with_their_name(server, fields, param):
    answer = server.post("/v1/responses", {"model": "fake", "input": USER, **fields})

    assert answer.status == 400, answer
    assert answer.error.keys() == {"message", "type", "param", "code"}
    assert answer.error["param"] == param, answer.error


RIGHT = [
    {"max_output_tokens": 2**31 - 1},
    {
        "tools": function(),
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    },
    {
        "tools": function(
            strict=True, parameters={"type": "object", "properties": {}, "required": [], "additionalProperties": False}
        )
    },
    {"tools": None, "tool_choice": None, "text": None, "reasoning": None, "include": None, "metadata": None},
    {"truncation": "disabled", "background": False, "context_management": [], "service_tier": "auto"},
    {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
    {"input": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, *USER]},
    {"input": [{"role": "user", "content": "a\0\x1b[31m\r\n\u202eb"}], "user": "u\0\r\nx: y"},
    {
        "client_metadata": {"x": "y"},
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
        "stream_options": {"include_obfuscation": False},
    },
]


@pytest.mark.parametrize("fields", RIGHT, ids=range(len(RIGHT)))
def test_odd_but_right_values_are_served(server, fields):
    answer = server.post("/v1/responses", {"model": "fake", "input": USER, **fields})

    assert answer.status == 200, answer
    assert "x-onecard-ignored" not in answer.headers


def test_what_has_no_effect_is_named(server):
    asked = {"reasoning": {"effort": "low", "summary": "auto"}, "truncation": "auto", "top_secret": 1}

    answer = server.post("/v1/responses", {"model": "fake", "input": USER, **asked})

    assert answer.status == 200
    names = answer.headers["x-onecard-ignored"].split(", ")
    assert {"reasoning.summary", "truncation", "top_secret"} <= set(names)
    assert answer.json()["truncation"] == "disabled"
    assert "reasoning.effort" in names or answer.json()["reasoning"]["effort"] == "low"


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=msg_x"])
def test_wrong_pages_are_refused(server, query):
    made = server.post("/v1/responses", {"model": "fake", "input": "x"}).json()

    answer = server.get(f"/v1/responses/{made['id']}/input_items?{query}")

    assert (answer.status, answer.error["param"]) == (400, query.split("=")[0])
    assert server.get(f"/v1/responses/{made['id']}?stream=true").status == 400
