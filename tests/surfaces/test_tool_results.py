"""Results that answer no call, and calls without a result, on the three surfaces of conversations."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.schemas.tool_results import Turn, first_unmatched

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be"}


def calls(*ids: str, text: str | None = None) -> dict:
    made = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in ids]
    return {"role": "assistant", "content": text, "tool_calls": made}


def result(name: str) -> dict:
    return {"role": "tool", "tool_call_id": name, "content": f"result of {name}"}


SAID = {"role": "assistant", "content": "well"}
NOT_FOLLOWED = "An assistant message with 'tool_calls' must be followed by tool messages"
NO_CALLS = "messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
NOT_FOUND = "not found in 'tool_calls' of previous message"

WRONG = [
    ([USER, result("a")], "messages[1].role", NO_CALLS),
    ([USER, SAID, result("a")], "messages[2].role", NO_CALLS),
    ([USER, calls("a"), result("a"), USER, result("a")], "messages[4].role", NO_CALLS),
    ([USER, calls("a"), result("b")], "messages[2].tool_call_id", f"'b' {NOT_FOUND}"),
    ([USER, calls("a"), result("a"), calls("b"), result("a")], "messages[4].tool_call_id", f"'a' {NOT_FOUND}"),
    ([USER, calls("a")], "messages[1].tool_calls", NOT_FOLLOWED),
    ([USER, calls("a"), USER], "messages[1].tool_calls", NOT_FOLLOWED),
    ([USER, calls("a", "b"), result("b")], "messages[1].tool_calls", "response messages: a"),
    ([USER, calls("a", "b"), result("b"), SAID], "messages[1].tool_calls", "response messages: a"),
    ([USER, calls("a"), USER, result("a")], "messages[1].tool_calls", "response messages: a"),
    ([USER, calls(*map(str, range(20)))], "messages[1].tool_calls", "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"),
]


@pytest.mark.parametrize(("messages", "param", "says"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_chat_is_refused_as_openai_does(server, messages, param, says):
    answer = server.post("/v1/chat/completions", {"model": "fake", "messages": messages})

    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, None)
    assert says in answer.error["message"]


RIGHT = [
    [USER, calls("a"), result("a")],
    [USER, calls("a", "b"), result("b"), result("a"), USER],
    [USER, calls("a"), result("a"), calls("a"), result("a")],
    [USER, calls("a"), SYSTEM, result("a")],
    [USER, calls("a"), calls("b"), result("a"), result("b")],
    [USER, calls("a"), SAID, result("a")],
    [USER, calls(""), result("")],
    [USER, calls("a", text="Let me see."), result("a"), result("a")],
]


@pytest.mark.parametrize("messages", RIGHT, ids=range(len(RIGHT)))
def test_what_clients_send_is_served(server, messages):
    answer = server.post("/v1/chat/completions", {"model": "fake", "messages": messages})

    assert answer.status == 200, answer
    assert "x-onecard-ignored" not in answer.headers


def test_calls_may_stay_open_where_no_answer_is_asked_for(server):
    asked = {"model": "fake", "messages": [USER, calls("a")]}

    assert server.post("/v1/chat/completions", {**asked, "add_generation_prompt": False, "max_tokens": 1}).status == 200
    assert server.post("/tokenize", asked).status == 200


def use(name: str) -> dict:
    return {"type": "tool_use", "id": name, "name": "f", "input": {}}


def block(name: str) -> dict:
    return {"type": "tool_result", "tool_use_id": name, "content": "x"}


def turns(*blocks: list) -> list:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(blocks)]


TEXT = [{"type": "text", "text": "hi"}]
UNEXPECTED = "unexpected `tool_use_id` found in `tool_result` blocks: b"
MISSING = "`tool_use` ids were found without `tool_result` blocks immediately after: a"
WRONG_BLOCKS = [
    (turns([block("b")]), 0, UNEXPECTED),
    (turns(TEXT, [use("a")], [block("b")]), 2, UNEXPECTED),
    (turns(TEXT, [use("a")], TEXT), 1, MISSING),
    (turns(TEXT, [use("a"), use("b")], [block("b")]), 1, MISSING),
    (turns(TEXT, [use("b")], [block("b")], TEXT, [block("b")]), 4, UNEXPECTED),
]


@pytest.mark.parametrize(("messages", "place", "says"), WRONG_BLOCKS, ids=range(len(WRONG_BLOCKS)))
def test_a_message_is_refused_as_anthropic_does(server, messages, place, says):
    answer = server.post("/v1/messages", {"model": "fake", "max_tokens": 5, "messages": messages})

    assert (answer.status, answer.error["param"]) == (400, f"messages[{place}].content")
    assert answer.error["message"].startswith(f"messages.{place}: {says}")
    assert server.post("/v1/messages/count_tokens", {"model": "fake", "messages": messages}).status == 200


@pytest.mark.parametrize(
    "messages",
    [
        turns(TEXT, [use("a"), use("b")], [block("b"), block("a"), *TEXT]),
        turns(TEXT, [use("a")], [*TEXT, block("a")]),
        turns(TEXT, [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}], TEXT),
    ],
)
def test_blocks_that_belong_together_are_served(server, messages):
    assert server.post("/v1/messages", {"model": "fake", "max_tokens": 5, "messages": messages}).status == 200


def called(name: str) -> dict:
    return {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"}


def output(call_id: str | None, **fields) -> dict:
    return {"type": "function_call_output", "call_id": call_id, "output": "x", **fields}


NO_CALL = "No tool call found for function call output with call_id b."
NO_OUTPUT = "No tool output found for function call a."


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([USER, output("b")], NO_CALL),
        ([USER, output("b"), called("b")], NO_CALL),
        ([USER, called("a")], NO_OUTPUT),
        ([USER, called("a"), called("b"), output("b"), USER], NO_OUTPUT),
        ([USER, {"type": "custom_tool_call", "call_id": "a", "name": "f", "input": ""}], NO_OUTPUT),
    ],
)
def test_a_response_is_refused_as_openai_does(server, items, says):
    answer = server.post("/v1/responses", {"model": "fake", "input": items})

    assert (answer.status, answer.error["param"], answer.error["message"]) == (400, "input", says)
    assert server.post("/v1/responses/input_tokens", {"model": "fake", "input": items}).status == 200


@pytest.mark.parametrize(
    ("items", "last"),
    [
        ([USER, called("a"), called("b"), output("a"), output("b")], "x"),
        ([USER, called("a"), {"role": "developer", "content": "note"}, output("a")], "x"),
        ([USER, called("a"), {"role": "assistant", "content": "I call."}, output("a"), USER], "hi"),
        ([USER, {"type": "web_search_call", "id": "w", "status": "completed"}], "hi"),
        ([output(None, name="create_thread")], "create_thread: x"),
        ([{"type": "function_call_output", "output": "x"}], "x"),
    ],
)
def test_items_that_belong_together_are_served(server, items, last):
    answer = server.post("/v1/responses", {"model": "fake", "input": items})

    assert answer.status == 200, answer
    assert answer.json()["output"][0]["content"][0]["text"] == f"echo: {last}"
    assert "x-onecard-ignored" not in answer.headers or "web_search" in json.dumps(items)


def test_a_stored_call_is_answered_by_the_next_request_or_not_at_all(server):
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    say = '!say <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    first = server.post("/v1/responses", {"model": "fake", "input": say, "tools": [tool]}).json()
    (call,) = first["output"]
    ask = {"model": "fake", "previous_response_id": first["id"]}

    forgotten = server.post("/v1/responses", {**ask, "input": "hi"})

    assert (forgotten.status, call["call_id"] in forgotten.error["message"]) == (400, True)
    assert server.post("/v1/responses", {**ask, "input": [output(call["call_id"])]}).status == 200


@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_whatever_matches_passes_and_losing_any_turn_of_it_does_not(dice: random.Random, n_rounds: int):
    whole: list[Turn] = []
    for i in range(n_rounds):
        ids = [f"{i}-{j}" for j in range(dice.randint(0, 3))]
        results = [Turn(0, "tool", answers=name) for name in dice.sample(ids, len(ids))]
        whole += [Turn(0, "user"), Turn(0, "assistant", ids), *results]
        whole += [Turn(0, "system")] * dice.randint(0, 1)
    whole = [turn._replace(place=place) for place, turn in enumerate(whole)]

    assert first_unmatched(whole) is None
    for turn in whole:
        if turn.answers is not None or turn.calls:
            assert first_unmatched([other for other in whole if other is not turn]) is not None
