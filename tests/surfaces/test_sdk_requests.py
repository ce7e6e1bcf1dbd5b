"""Every field that the newest SDKs can send has been decided on: honoured, refused by name, or harmless."""

from __future__ import annotations

import json

import pytest

from server.surfaces import SURFACES
from tests.schemas.requests import DECIDED, TYPES, inner, top_level

FIELDS = {surface.path: surface.fields for surface in SURFACES}
WHAT_TO_DO = (
    "a newer SDK sends what nobody here has looked at. For each: honour it in server/schemas; or, where it changes "
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


def test_every_field_within_has_been_decided():
    decided = json.loads(DECIDED.read_text())
    new = [
        f"{kind}.{field}" for kind, fields in inner().items() for field in fields if field not in decided.get(kind, ())
    ]
    assert not new, f"{new}: {WHAT_TO_DO} Then run python -m tests.schemas.requests."


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
    ("/v1/chat/completions", CHAT, {"web_search_options": {}}, "web_search_options"),
    ("/v1/chat/completions", CHAT, {"moderation": {"model": "m"}}, "moderation"),
]


@pytest.mark.parametrize(("path", "body", "fields", "param"), ELSEWHERE)
def test_what_says_that_the_rest_is_elsewhere_is_refused_by_name(server, path, body, fields, param):
    answer = server.post(path, {**body, **fields})

    assert (answer.status, answer.error["param"]) == (400, param)
