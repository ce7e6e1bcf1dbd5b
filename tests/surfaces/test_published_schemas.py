"""Every body and every event against what OpenAI and Anthropic have published: nothing that is required is missing.

OpenAI's description lies reduced in `tests/schemas/openai.json`; Anthropic's is its SDK's own types, of which every
field has to be answered, because the types call nearly all of them optional and the service sends them all.
"""

from __future__ import annotations

import json
from pathlib import Path

import anthropic.types as stable
import jsonschema
import msgspec
import openai.types as openai_types
import pytest
from anthropic.types import beta
from anthropic.types.beta import beta_raw_message_delta_event
from anthropic.types.raw_message_delta_event import Delta
from pydantic import BaseModel

from server.output import anthropic_objects as ours
from server.output import response_objects
from tests.surfaces.conftest import events_of

DOCUMENT = json.loads((Path(__file__).parents[1] / "schemas" / "openai.json").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
THOUGHT = "!say <think>\nwell now\n</think>\n\nyes"
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
OPEN_RESPONSES = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p"),
    *("presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "background"),
    *("max_output_tokens", "max_tool_calls", "store", "service_tier", "metadata", "safety_identifier"),
    "prompt_cache_key",
}
"""What the Open Responses specification (2026-04-24) requires of a response."""


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def problems(value: object, name: str) -> list[str]:
    """What OpenAI's description finds wrong with an answer.

    `usage` of a response is null until it ends: so OpenAI itself sends it, and Open Responses requires the field.
    """
    if isinstance(value, dict) and value.get("response", {}).get("usage", 0) is None:
        value = {**value, "response": {key: inner for key, inner in value["response"].items() if key != "usage"}}
    judge = jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **DOCUMENT})
    return [f"{error.json_path}: {error.message}" for error in judge.iter_errors(value)]


ASKED = {
    "plain": {},
    "cut": {"max": 2},
    "call": {"text": f"!say Sure. {CALL}", "tools": True},
    "thought": {"text": THOUGHT},
    "logprobs": {"logprobs": True},
}


def chat(case: dict, **fields) -> dict:
    body = {"model": "fake", "messages": user(case.get("text", "hello there")), **fields}
    body |= {"max_tokens": case["max"]} if "max" in case else {}
    body |= {"tools": CHAT_TOOLS} if "tools" in case else {}
    return body | ({"logprobs": True, "top_logprobs": 2} if "logprobs" in case else {})


def response(case: dict, **fields) -> dict:
    body = {"model": "fake", "input": case.get("text", "hello there"), **fields}
    body |= {"max_output_tokens": case["max"]} if "max" in case else {}
    body |= {"tools": [{"type": "function", **FUNCTION}]} if "tools" in case else {}
    logprobs = {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2}
    return body | (logprobs if "logprobs" in case else {})


def message(case: dict, **fields) -> dict:
    body = {"model": "fake", "messages": user(case.get("text", "hello there")), "max_tokens": case.get("max", 99)}
    return {**body, **fields} | (
        {"tools": [{"name": "weather", "input_schema": {"type": "object"}}]} if "tools" in case else {}
    )


def chunks_of(body: bytes) -> list[dict]:
    blocks = [block for block in body.decode().split("\n\n") if block.startswith("data: ")]
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block[6:]) for block in blocks[:-1]]


@pytest.mark.parametrize("case", ASKED.values(), ids=ASKED)
def test_chat_completions(server, case):
    whole = server.post("/v1/chat/completions", chat(case, n=2)).json()
    assert problems(whole, "CreateChatCompletionResponse") == []
    assert all(choice["message"]["annotations"] == [] for choice in whole["choices"])
    streamed = chat(case, stream=True, stream_options={"include_usage": True})
    for chunk in chunks_of(server.post("/v1/chat/completions", streamed).body):
        assert problems(chunk, "CreateChatCompletionStreamResponse") == [], chunk


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2, "echo": True}, {"max_tokens": 1, "n": 2}])
def test_completions(server, fields):
    body = {"model": "fake", "prompt": "hello there", **fields}
    assert problems(server.post("/v1/completions", body).json(), "CreateCompletionResponse") == []
    for chunk in chunks_of(server.post("/v1/completions", {**body, "stream": True}).body):
        # Chunks have the same schema, of which the end's reason is null until then.
        ended = {**chunk, "choices": [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in chunk["choices"]]}
        assert problems(ended, "CreateCompletionResponse") == [], chunk


def event_names() -> dict[str, str]:
    """The kind of each event to the name of its schema."""
    names = {}
    for name, schema in SCHEMAS.items():
        if name.startswith("Response") and name.endswith("Event"):
            kind = schema["properties"]["type"]
            names[kind.get("const") or kind["enum"][0]] = name
    return names


@pytest.mark.parametrize("case", ASKED.values(), ids=ASKED)
def test_responses(server, case):
    whole = server.post("/v1/responses", response(case)).json()
    assert problems(whole, "Response") == []
    assert whole.keys() >= OPEN_RESPONSES
    assert server.get(f"/v1/responses/{whole['id']}").json() == whole
    names = event_names()
    for kind, event in events_of(server.post("/v1/responses", response(case, stream=True)).body):
        assert problems(event, names[kind]) == [], event
        if "response" in event:
            assert event["response"].keys() >= OPEN_RESPONSES


def test_a_failed_response(server):
    asked = response({}, stream=True, model="org/small:Q8", input="!crash")
    server.post("/v1/responses", {**asked, "input": "x"})
    kind, event = events_of(server.post("/v1/responses", asked).body)[-1]
    assert kind == "response.failed"
    assert problems(event, "ResponseFailedEvent") == []
    assert server.post("/v1/responses", {**asked, "input": "x"}).status == 200


def test_models_and_errors(server):
    assert problems(server.get("/v1/models").json(), "ListModelsResponse") == []
    assert problems(server.get("/v1/models/fake").json(), "Model") == []
    for path in ("/v1/models/nope", "/nowhere", "/v1/chat/completions"):
        assert problems(server.get(path).json(), "ErrorResponse") == []


def test_the_schemas_find_what_is_missing(server):
    whole = server.post("/v1/responses", response({})).json()
    for name in ("output", "instructions", "tool_choice"):
        assert problems({key: value for key, value in whole.items() if key != name}, "Response")


def fields_of(*models: type[BaseModel]) -> set[str]:
    return {name for model in models for name in model.model_fields}


SOMETIMES = {"input_transformations", "toolset_name"}
"""Fields that Anthropic sends only where its own features were used."""
PAIRS = [
    (ours.Message, (stable.Message, beta.BetaMessage)),
    (ours.MessageUsage, (stable.Usage, beta.BetaUsage)),
    (ours.DeltaUsage, (stable.MessageDeltaUsage, beta.BetaMessageDeltaUsage)),
    (ours.MessageDelta, (Delta, beta_raw_message_delta_event.Delta)),
    (ours.MessageDeltaEvent, (stable.RawMessageDeltaEvent, beta.BetaRawMessageDeltaEvent)),
    (ours.TextBlock, (stable.TextBlock, beta.BetaTextBlock)),
    (ours.ThinkingBlock, (stable.ThinkingBlock, beta.BetaThinkingBlock)),
    (ours.ToolUseBlock, (stable.ToolUseBlock, beta.BetaToolUseBlock)),
    (ours.CacheCreation, (stable.CacheCreation, beta.BetaCacheCreation)),
    (ours.OutputTokensDetails, (stable.OutputTokensDetails, beta.BetaOutputTokensDetails)),
    (ours.ModelInfo, (stable.ModelInfo, beta.BetaModelInfo)),
    (ours.TokenCount, (stable.MessageTokensCount, beta.BetaMessageTokensCount)),
]


@pytest.mark.parametrize(("struct", "types"), PAIRS, ids=[struct.__name__ for struct, _ in PAIRS])
def test_anthropics_objects_have_every_field_of_the_sdks_types(struct, types):
    named = {field.name for field in msgspec.structs.fields(struct)}
    if (tag := struct.__struct_config__.tag_field) is not None:
        named.add(tag)
    missing, unknown = fields_of(*types) - SOMETIMES - named, named - fields_of(*types)
    advice = f"add them to server.output.anthropic_objects.{struct.__name__} with the value that says 'nothing'"
    assert not missing, f"Anthropic's SDK has fields that no answer has: {sorted(missing)}; {advice}"
    assert not unknown, f"fields that Anthropic's SDK does not have: {sorted(unknown)}"


RESPONSE_PAIRS = [
    (response_objects.OutputMessage, "OutputMessage"),
    (response_objects.OutputText, "OutputTextContent"),
    (response_objects.FunctionCall, "FunctionToolCall"),
    (response_objects.ReasoningItem, "ReasoningItem"),
    (response_objects.CompactionItem, "CompactionBody"),
]


@pytest.mark.parametrize(("struct", "name"), RESPONSE_PAIRS, ids=[name for _, name in RESPONSE_PAIRS])
def test_the_items_of_responses_have_every_field_that_is_required(struct, name):
    named = {field.name for field in msgspec.structs.fields(struct)}
    assert set(SCHEMAS[name]["required"]) <= named <= set(SCHEMAS[name]["properties"])


def test_a_compacted_response_is_the_sdks():
    named = {field.name for field in msgspec.structs.fields(response_objects.CompactedResponse)}
    assert named == fields_of(openai_types.responses.CompactedResponse) - {"image"}


@pytest.mark.parametrize("case", ASKED.values(), ids=ASKED)
def test_messages_as_they_come_have_every_field(server, case):
    whole = server.post("/v1/messages", message(case)).json()
    assert whole.keys() == fields_of(stable.Message, beta.BetaMessage) - SOMETIMES
    assert whole["usage"].keys() == fields_of(stable.Usage, beta.BetaUsage)
    assert isinstance(whole["usage"]["output_tokens_details"]["thinking_tokens"], int)
    by_type: dict[str, type[BaseModel]] = {
        "text": stable.TextBlock,
        "thinking": stable.ThinkingBlock,
        "tool_use": stable.ToolUseBlock,
    }
    for block in whole["content"]:
        assert block.keys() == fields_of(by_type[block["type"]]) - SOMETIMES
    events = events_of(server.post("/v1/messages", message(case, stream=True)).body)
    start, delta = events[0][1]["message"], events[-2][1]
    assert start.keys() == whole.keys()
    assert start["usage"].keys() == whole["usage"].keys()
    assert delta.keys() == fields_of(stable.RawMessageDeltaEvent, beta.BetaRawMessageDeltaEvent) - SOMETIMES
    assert delta["delta"].keys() == fields_of(Delta)
    assert delta["usage"].keys() == fields_of(stable.MessageDeltaUsage, beta.BetaMessageDeltaUsage)
