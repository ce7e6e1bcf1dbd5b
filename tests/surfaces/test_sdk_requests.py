"""Every field that the newest SDKs can send has been decided on: honoured, refused by name, or harmless."""

from __future__ import annotations

import pytest

from server.routes.table import SURFACES
from server.schemas.anthropic import parse_message
from tests.schemas.nested import Fate, fates
from tests.schemas.requests import TYPES, top_level

FIELDS = {surface.path: surface.fields for surface in SURFACES}
WHAT_TO_DO = (
    "a newer SDK sends what was not looked at here. For each: honour it in server/schemas; or, where it changes "
    "what a request means, refuse it by name (Use.NEUTRAL_ONLY, or a validator with the field's path); or, where it "
    "changes no answer, call it harmless with its type and a reason (server/schemas/harmless.py)."
)
USER = [{"role": "user", "content": "hi"}]
CHAT = {"model": "fake", "messages": USER}
RESPONSE = {"model": "fake", "input": "hi"}
MESSAGE = {"model": "fake", "max_tokens": 9, "messages": USER}


@pytest.mark.parametrize("path", TYPES)
def test_every_field_of_the_sdks_is_in_the_table(path):
    new = sorted(top_level(path) - set(FIELDS[path]))
    assert not new, f"{path} {new}: {WHAT_TO_DO}"


IN_SILENCE = {
    "marks of what to cache; the prefix cache needs none": """
        ChatCompletionContentPartTextParam.prompt_cache_breakpoint ResponseInputTextParam.prompt_cache_breakpoint
        ResponseInputTextContentParam.prompt_cache_breakpoint TextBlockParam.cache_control ToolParam.cache_control
        ToolResultBlockParam.cache_control ToolUseBlockParam.cache_control
        PromptCacheOptions.mode PromptCacheOptions.ttl PromptCacheOptions.prewarm
        PromptCacheOptions.comparison_response_id""",
    "what a provider adds to what it says, and gets back": """
        ThinkingBlockParam.signature TextBlockParam.citations ResponseOutputTextParam.annotations
        ResponseOutputTextParam.logprobs ChatCompletionAssistantMessageParam.audio
        ToolUseBlockParam.caller FunctionCallOutput.caller ResponseCustomToolCallOutputParam.caller
        ResponseCustomToolCallParam.caller ResponseFunctionToolCallParam.caller
        FunctionCallOutput.namespace ResponseCustomToolCallParam.namespace ResponseFunctionToolCallParam.namespace""",
    "arguments always come as they are written": "ToolParam.eager_input_streaming",
    "within fields that change no answer": """
        DiagnosticsParam.previous_message_id FallbackCreditTokenParam.mode FallbackParam.output_config
        FallbackParam.speed FallbackParam.thinking Image.context_compression""",
    "a JSON schema is read as a whole": "InputSchemaTyped.properties InputSchemaTyped.required",
}
"""Why -> fields that nothing reads or names."""
NAMED_ONLY = {
    "how much a model may think where it does not, and what it tells of it": """
        OutputConfigParam.effort Reasoning.context Reasoning.mode Reasoning.summary
        ThinkingConfigAdaptiveParam.display ThinkingConfigEnabledParam.display
        ThinkingConfigAdaptiveParam.block_binding ThinkingConfigEnabledParam.block_binding""",
    "a hint of how long the work may get": "OutputConfigParam.task_budget",
    "what a tool is shown with beside its schema, and when": """
        FunctionToolParam.allowed_callers FunctionToolParam.async FunctionToolParam.defer_loading
        FunctionToolParam.output_schema ToolParam.allowed_callers ToolParam.defer_loading ToolParam.input_examples
        ResponseCustomToolCallParam.async ResponseFunctionToolCallParam.async
        ToolResultBlockParam.toolset_name ToolUseBlockParam.toolset_name""",
    "marks of what to cache": "ChatCompletionContentPartTextParam.prompt_cache_breakpoint",
    "how an image of an earlier turn came about, which is not drawn again": """
        ImageGenerationCall.action ImageGenerationCall.background ImageGenerationCall.error
        ImageGenerationCall.output_format ImageGenerationCall.quality ImageGenerationCall.size
        ImageGenerationCall.svg_usage""",
}
"""Why it is enough that the header names what had no effect -> fields."""


def of_fate(fate: Fate) -> set[str]:
    """Fields as `Type.field`, a beta's type by the name of the stable one."""
    return {f"{place.kind.__name__.removeprefix('Beta')}.{name}" for place, name, its in fates() if its is fate}


@pytest.mark.parametrize(("fate", "decided"), [(Fate.SILENT, IN_SILENCE), (Fate.NAMED, NAMED_ONLY)])
def test_every_field_within_is_read_or_refused_or_has_a_reason(fate, decided):
    listed = {field for fields in decided.values() for field in fields.split()}
    found = of_fate(fate)
    assert not found - listed, f"{sorted(found - listed)}: {WHAT_TO_DO} Or give the reason here."
    assert not listed - found, "no longer there, or read by now"


def test_the_fates_are_told_apart():
    fates_of = {(place.kind.__name__, name): fate for place, name, fate in fates()}
    assert fates_of["ToolUseBlockParam", "input"] is Fate.READ
    assert fates_of["ImageBlockParam", "source"] is Fate.REFUSED
    assert fates_of["ServerToolUseBlockParam", "input"] is Fate.LEFT_OUT
    assert fates_of["ToolParam", "input_examples"] is Fate.NAMED
    assert fates_of["ToolParam", "cache_control"] is Fate.SILENT


def test_a_system_message_that_is_cleared_is_shown_for_one_turn():
    def shown(*after: dict) -> list:
        said = {"role": "system", "content": "once", "clear_at": "next_user_message"}
        body = {"model": "m", "max_tokens": 1, "messages": [*USER, said, *after]}
        return [message.said for message in parse_message(body).chat.messages]

    assert shown() == ["hi", "once"]
    assert shown({"role": "assistant", "content": "a"}) == ["hi", "once", "a"]
    assert shown({"role": "assistant", "content": "a"}, *USER) == ["hi", "a", "hi"]


ELSEWHERE = [
    ("/v1/responses", RESPONSE, {"conversation": "conv_1"}, "conversation"),
    ("/v1/responses", RESPONSE, {"conversation": {"id": "conv_1"}}, "conversation"),
    ("/v1/responses", RESPONSE, {"prompt": {"id": "pmpt_1"}}, "prompt"),
    ("/v1/responses", RESPONSE, {"previous_response_id": "resp_nope"}, "previous_response_id"),
    ("/v1/responses", RESPONSE, {"context_management": [{"type": "compaction"}]}, "context_management"),
    ("/v1/responses", RESPONSE, {"background_options": {"completion_window": "2h"}}, "background_options"),
    ("/v1/responses", RESPONSE, {"personality": "friendly"}, "personality"),
    ("/v1/responses", RESPONSE, {"input": [{"type": "item_reference", "id": "msg_nobodys"}]}, "input[0].id"),
    ("/v1/responses", RESPONSE, {"input": [{"type": "compaction_trigger"}]}, "input[0].type"),
    ("/v1/responses", RESPONSE, {"input": [{"type": "configuration_update"}]}, "input[0].type"),
    ("/v1/responses/input_tokens", RESPONSE, {"personality": "friendly"}, "personality"),
    ("/v1/messages", MESSAGE, {"container": {"id": "c"}}, "container"),
    ("/v1/messages", MESSAGE, {"mcp_servers": [{"type": "url", "url": "u", "name": "n"}]}, "mcp_servers"),
    ("/v1/messages", MESSAGE, {"compaction": {"type": "enabled"}}, "compaction"),
    (
        "/v1/messages",
        MESSAGE,
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        "context_management.edits[0].type",
    ),
    (
        "/v1/messages",
        MESSAGE,
        {"messages": [{"role": "assistant", "content": [{"type": "compaction", "content": "x"}]}, *USER]},
        "messages[0].content[0].type",
    ),
    (
        "/v1/messages",
        MESSAGE,
        {"messages": [*USER, {"role": "system", "content": [{"type": "tool_removal"}]}]},
        "messages[1].content[0].type",
    ),
    (
        "/v1/messages",
        MESSAGE,
        {"messages": [*USER, {"role": "system", "content": "x", "output_config": {"effort": "low"}}]},
        "messages[1].output_config",
    ),
    (
        "/v1/chat/completions",
        CHAT,
        {"messages": [*USER, {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}}]},
        "messages[1].function_call",
    ),
    ("/v1/chat/completions", CHAT, {"web_search_options": {}}, "web_search_options"),
    ("/v1/chat/completions", CHAT, {"moderation": {"model": "m"}}, "moderation"),
]


@pytest.mark.parametrize(("path", "body", "fields", "param"), ELSEWHERE)
def test_what_says_that_the_rest_is_elsewhere_is_refused_by_name(server, path, body, fields, param):
    answer = server.post(path, {**body, **fields})

    assert (answer.status, answer.error["param"]) == (400, param)
