"""Message threads with Anthropic's own helpers: the server holds the conversation, the client sends what is new."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import beta_tool
from anthropic.types.beta import BetaMessageParam

from tests.http.conftest import KEY

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
HI: BetaMessageParam = {"role": "user", "content": "hi there"}
CREATE: Any = {"type": "create"}


def client_of(server, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.url, api_key=key, max_retries=0, timeout=20, _strict_response_validation=True
    )


@pytest.fixture(scope="module")
def claude(server):
    with client_of(server) as client:
        yield client


@beta_tool
def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where.
    """
    return f"{city} is dry"


def spoken(server, body: dict) -> dict:
    answer = server.post("/v1/messages", {"model": "fake", "max_tokens": 99, **body})
    assert answer.status == 200, answer
    assert "x-onecard-ignored" not in answer.headers
    return answer.json()


def test_a_later_turn_is_answered_with_all_that_was_said_before(claude):
    thread = claude.beta.messages.thread(model="fake", max_tokens=99, system="ss")
    first = thread.send({"role": "user", "content": "aa"})
    assert thread.previous_message_id == first.id
    second = thread.send({"role": "user", "content": "bb"})
    with thread.stream({"role": "user", "content": "cc"}) as stream:
        text = "".join(stream.text_stream)
        third = stream.get_final_message()

    # The engine of the tests counts a character as a token.
    said = "ss\naa\necho: aa\nbb\necho: bb\ncc"
    assert text == third.content[0].text == "echo: cc"
    assert (first.usage.input_tokens, second.usage.input_tokens) == (5, len("ss\naa\necho: aa\nbb"))
    assert third.usage.input_tokens == len(said)
    assert thread.previous_message_id == third.id


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_tool_runner_of_the_sdk_goes_round(claude, server, stream):
    asked = [{"role": "user", "content": f"!say {CALL}"}]
    runner = claude.beta.messages.tool_runner(
        model="fake", max_tokens=99, tools=[weather], messages=asked, stream=stream
    )
    final = [turn.get_final_message() if stream else turn for turn in runner][-1]

    assert final.content[0].text == "echo: Paris is dry"
    assert final.usage.input_tokens > len("!say " + CALL)


def test_a_thread_that_is_gone_is_sent_again_whole(small):
    """Two are kept: the SDK replays the conversation and goes on."""
    with client_of(small) as client:
        thread = client.beta.messages.thread(model="fake", max_tokens=99)
        first = thread.send({"role": "user", "content": "aa"})
        for _ in range(2):
            client.beta.messages.create(model="fake", max_tokens=99, messages=[HI], thread=CREATE)
        second = thread.send({"role": "user", "content": "bb"})

    assert second.usage.input_tokens == len("aa\necho: aa\nbb")
    assert second.id not in (first.id, None)


def test_an_unknown_thread_is_the_sdks_own_error(claude, server, keyed):
    gone = {"type": "continue", "previous_message_id": "msg_nope"}
    with pytest.raises(anthropic.NotFoundError) as refused:
        claude.beta.messages.create(model="fake", max_tokens=9, messages=[HI], thread=gone)
    assert (refused.value.error_code, refused.value.type) == ("thread_not_found", "not_found_error")
    assert refused.value.request_id
    counted = server.post("/v1/messages/count_tokens", {"model": "fake", "messages": [HI], "thread": gone})
    assert counted.status == 404

    with client_of(keyed, KEY) as mine, client_of(keyed, "sk-second-9876543210") as other:
        held = mine.beta.messages.create(model="fake", max_tokens=9, messages=[HI], thread=CREATE)
        more: dict[str, Any] = {
            "model": "fake",
            "max_tokens": 9,
            "messages": [HI],
            "thread": {"type": "continue", "previous_message_id": held.id},
        }
        assert mine.beta.messages.create(**more).usage.input_tokens > len("hi there")
        with pytest.raises(anthropic.NotFoundError):
            other.beta.messages.create(**more)
    # It is no response: the other surface does not find it.
    assert keyed.get(f"/v1/responses/{held.id}", headers={"x-api-key": KEY}).status == 404


def test_what_a_thread_was_made_with_stays(server):
    made = spoken(server, {"messages": [HI], "system": "ss", "thread": CREATE})
    more = {"thread": {"type": "continue", "previous_message_id": made["id"]}, "messages": [HI]}

    assert spoken(server, {**more, "system": "ss"})["usage"]["input_tokens"] > len("hi there")
    other = server.post("/v1/messages", {"model": "fake", "max_tokens": 9, **more, "system": "tt"})
    assert (other.status, other.error["param"], other.error["code"]) == (400, "system", "thread_fingerprint_mismatch")
    assert other.error["details"] == {"error_code": "thread_fingerprint_mismatch"}


def test_a_turn_that_was_begun_for_the_model_is_one_turn(server):
    begun = [HI, {"role": "assistant", "content": "It is"}]
    made = spoken(server, {"messages": begun, "thread": CREATE})
    said = made["content"][0]["text"]
    more = {"thread": {"type": "continue", "previous_message_id": made["id"]}, "messages": [HI]}

    assert spoken(server, more)["usage"]["input_tokens"] == len(f"hi there\nIt is{said}\nhi there")


def test_a_call_that_a_thread_waits_for_is_asked_for_in_the_clients_own_count(server):
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    made = spoken(server, {"messages": [{"role": "user", "content": f"!say {CALL}"}], "tools": tools, "thread": CREATE})
    (use,) = made["content"]
    assert use["id"].startswith("toolu_")
    more = {"model": "fake", "max_tokens": 9, "thread": {"type": "continue", "previous_message_id": made["id"]}}
    answer = server.post("/v1/messages", {**more, "messages": [HI]})
    assert (answer.status, answer.error["param"]) == (400, "messages[0].content")
    assert use["id"] in answer.error["message"]
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "dry"}
    assert server.post("/v1/messages", {**more, "messages": [{"role": "user", "content": [result]}]}).status == 200


@pytest.mark.parametrize(
    ("thread", "param"),
    [
        ({"type": "continue"}, "thread.previous_message_id"),
        ({"type": "create", "previous_message_id": "msg_1"}, "thread.previous_message_id"),
        ({"type": "fork"}, "thread.type"),
        ({"type": "continue", "previous_message_id": 3}, "thread.previous_message_id"),
        ({"type": "create", "id": "x"}, "thread.id"),
        ("create", "thread"),
    ],
)
def test_wrong_threads_are_refused_by_name(server, thread, param):
    answer = server.post("/v1/messages", {"model": "fake", "max_tokens": 9, "messages": [HI], "thread": thread})
    assert (answer.status, answer.error["param"]) == (400, param)


ELSEWHERE = {
    "/v1/messages": ("conversation", "previous_message_id", "previous_response_id", "thread_id", "memory_id"),
    "/v1/chat/completions": (
        "conversation",
        "previous_response_id",
        "thread",
        "parent_message_id",
        "documents",
        "system",
    ),
    "/v1/responses": ("conversation", "previous_message_id", "thread_id", "memory_id"),
}


@pytest.mark.parametrize(("path", "field"), [(path, name) for path, names in ELSEWHERE.items() for name in names])
def test_a_field_that_says_the_rest_is_elsewhere_is_refused_by_name(server, path, field):
    text = {"input": "hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "hi"}]}
    asked = {"model": "fake", "max_tokens": 4, **text}
    if path == "/v1/responses":
        del asked["max_tokens"]

    refused = server.post(path, {**asked, field: "m_1"})

    assert (refused.status, refused.error["param"]) == (400, field)
    assert server.post(path, {**asked, field: None}).status == 200
