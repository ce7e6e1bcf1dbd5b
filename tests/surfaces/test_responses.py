"""`/v1/responses` with OpenAI's own client, strict about every object it receives, over a real socket."""

from __future__ import annotations

import json

import openai
import pytest

from server.schemas.responses import parse_response
from tests.surfaces.conftest import events_of

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS = [
    {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False},
    {"type": "web_search"},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
]
THOUGHT = "!say <think>\nwell now\n</think>\n\nyes"


def test_a_text_is_answered(client):
    response = client.responses.create(model="gpt-4o-mini", input="hello world")

    assert response.output_text == "echo: hello world"
    assert (response.status, response.model) == ("completed", "fake")
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 3, 14)
    assert response.completed_at >= response.created_at


def test_a_stream_has_numbered_events_in_order(client):
    with client.responses.stream(model="fake", input="a b") as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == "echo: a b"
    assert final.output_text == "echo: a b"


def test_instructions_and_every_kind_of_message_reach_the_model(server, client):
    items = [
        {"role": "developer", "content": "aa"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "bb"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "cc", "annotations": []}, {"type": "refusal", "refusal": "no"}],
        },
        {"role": "user", "content": "!say ok"},
    ]

    response = client.responses.create(model="fake", instructions="ii", input=items)

    assert response.output_text == "ok"
    assert response.usage.input_tokens == len("ii\n\naa\nbb\ncc\nno\n!say ok")
    counted = server.post("/v1/responses/input_tokens", {"model": "fake", "instructions": "ii", "input": items})
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": response.usage.input_tokens}


def test_a_tool_loop_goes_there_and_back(client):
    first = client.responses.create(model="fake", input=f"!say Sure. {CALL}{CALL}", tools=TOOLS)

    message, call, other = first.output
    assert message.content[0].text == "Sure."
    assert (call.type, call.name, call.arguments, call.status) == (
        "function_call",
        "weather",
        '{"city": "Paris"}',
        "completed",
    )
    assert call.call_id != other.call_id
    assert [tool.type for tool in first.tools] == ["function"]

    results = [{"type": "function_call_output", "call_id": c.call_id, "output": "sunny"} for c in (call, other)]
    history = [{"role": "user", "content": "x"}, *[item.to_dict() for item in first.output], *results]
    second = client.responses.create(model="fake", input=history, tools=TOOLS)
    assert second.output_text == "echo: sunny"
    parts = [{**results[0], "output": [{"type": "input_text", "text": "dry"}]}]
    third = client.responses.create(model="fake", input=[*history, *parts])
    assert third.output_text == "echo: dry"


def test_a_streamed_call_comes_as_argument_deltas(client):
    events = list(client.responses.create(model="fake", input=f"!say {CALL}", tools=TOOLS, stream=True))

    (added,) = [e for e in events if e.type == "response.output_item.added"]
    assert (added.item.name, added.item.arguments, added.item.status) == ("weather", "", "in_progress")
    deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert json.loads(deltas) == json.loads(done.arguments) == {"city": "Paris"}
    (item,) = [e.item for e in events if e.type == "response.output_item.done"]
    assert item == events[-1].response.output[0]


def test_tools_of_other_kinds_are_skipped_by_name(server):
    answer = server.post("/v1/responses", {"model": "fake", "input": "hi", "tools": TOOLS, "foo": 1})

    assert answer.status == 200
    assert answer.headers["x-onecard-ignored"] == "foo, tools[custom], tools[web_search]"


def test_items_without_content_are_skipped_and_custom_calls_are_calls(server):
    items = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": []},
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
    ]

    answer = server.post("/v1/responses", {"model": "fake", "input": items})

    assert answer.headers["x-onecard-ignored"] == "input[mcp_list_tools], input[web_search_call]"
    assert answer.json()["output"][0]["content"][0]["text"] == "echo: done"


def test_reasoning_is_an_item_of_its_own_and_comes_back(client):
    response = client.responses.create(model="fake", input=THOUGHT, include=["reasoning.encrypted_content"])

    reasoning, message = response.output
    assert reasoning.content[0].text == "well now"
    assert message.content[0].text == "yes"
    events = list(client.responses.create(model="fake", input=THOUGHT, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "well now"
    assert events[-1].response.output[0].encrypted_content is None

    whole = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "rr"}]}
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": reasoning.encrypted_content}
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAAB"}
    for item, thought in ((whole, "rr"), (sealed, "well now"), (foreign, None)):
        turns = [{"role": "user", "content": "x"}, item, *message_of("y")]
        assert client.responses.create(model="fake", input=turns).output_text == "echo: y"
        asked = parse_response({"model": "fake", "input": turns}).complete(before=None, items={})
        assert asked.turns[1].get("reasoning_content") == thought


def message_of(text: str) -> list[dict]:
    return [{"role": "assistant", "content": "ok"}, {"role": "user", "content": text}]


@pytest.mark.parametrize(
    "empty", [{"input": ""}, {"input": []}, {}, {"input": None}, {"input": [], "instructions": "be"}]
)
def test_nothing_said_yet_is_answered(server, empty):
    assert server.post("/v1/responses", {"model": "fake", **empty}).status == 200


def test_a_response_is_continued_by_its_id(client):
    first = client.responses.create(model="fake", input="one", instructions="not carried over")
    second = client.responses.create(model="fake", input="two", previous_response_id=first.id)
    third = client.responses.create(model="fake", input="three", previous_response_id=second.id)

    assert third.output_text == "echo: three"
    assert third.previous_response_id == second.id
    assert third.usage.input_tokens == len("one\necho: one\ntwo\necho: two\nthree")


def test_a_stored_response_is_read_listed_and_deleted(client):
    items = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    response = client.responses.create(model="fake", input=items, metadata={"k": "v"})

    again = client.responses.retrieve(response.id)
    assert (again.output, again.metadata, again.usage) == (response.output, {"k": "v"}, response.usage)
    listed = client.responses.input_items.list(response.id, order="asc")
    assert [item.content[0].text for item in listed] == ["a", "b", "c"]
    page = client.responses.input_items.list(response.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["c", "b"]
    assert [item.content[0].text for item in page] == ["c", "b", "a"]
    client.responses.delete(response.id)
    for gone in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            gone(response.id)


def test_items_of_stored_responses_can_be_referred_to(client):
    first = client.responses.create(model="fake", input="one")
    items = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "two"}]

    second = client.responses.create(model="fake", input=items)

    assert second.usage.input_tokens == len("echo: one\ntwo")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input=[{"id": "msg_nope"}])
    assert caught.value.param == "input[0].id"


def test_store_false_keeps_nothing(client):
    response = client.responses.create(model="fake", input="x", store=False)

    assert (
        client.responses.with_raw_response.create(model="fake", input="x", store=False).parse().to_dict()["store"]
        is False
    )
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="y", previous_response_id=response.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_responses_of_another_key_are_not_found(keyed):
    keys = ["sk-canary-0123456789-key", "sk-second-9876543210"]
    mine, other = ({"authorization": f"Bearer {key}"} for key in keys)
    response = keyed.post("/v1/responses", {"model": "fake", "input": "secret"}, headers=mine).json()

    assert keyed.get(f"/v1/responses/{response['id']}", headers=mine).status == 200
    assert keyed.get(f"/v1/responses/{response['id']}", headers=other).status == 404
    assert keyed.call("DELETE", f"/v1/responses/{response['id']}", headers=other).status == 404
    follow = {"model": "fake", "input": "x", "previous_response_id": response["id"]}
    assert keyed.post("/v1/responses", follow, headers=other).status == 400


def test_a_full_store_lets_the_oldest_go(small):
    ids = [small.post("/v1/responses", {"model": "fake", "input": f"x{i}"}).json()["id"] for i in range(3)]

    assert [small.get(f"/v1/responses/{name}").status for name in ids] == [404, 200, 200]
    large = small.post("/v1/responses", {"model": "fake", "input": "x" * 3000}).json()["id"]
    assert small.get(f"/v1/responses/{large}").status == 404
    assert small.get(f"/v1/responses/{ids[2]}").status == 200


def test_a_limit_makes_it_incomplete(client):
    response = client.responses.create(model="fake", input="!long 50", max_output_tokens=16)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    events = list(client.responses.create(model="fake", input="!long 50", max_output_tokens=16, stream=True))
    assert events[-1].type == "response.incomplete"
    assert client.responses.create(model="fake", input="hi", max_output_tokens=32_000).status == "completed"


def test_log_probabilities_are_included_on_request(client):
    include = ["message.output_text.logprobs"]
    response = client.responses.create(model="fake", input="a", include=include, top_logprobs=1)
    assert [entry.token for entry in response.output[0].content[0].logprobs] == ["echo:", " a"]
    events = list(client.responses.create(model="fake", input="a", include=include, stream=True))
    deltas = [e for e in events if e.type == "response.output_text.delta"]
    assert [entry.token for e in deltas for entry in e.logprobs] == ["echo:", " a"]


def test_a_crash_ends_the_stream_as_failed(client):
    model = "org/small:Q8"
    assert client.responses.create(model=model, input="hi").status == "completed"  # or the model is put aside
    events = list(client.responses.create(model=model, input="!crash", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"
    assert client.responses.create(model=model, input="hi").status == "completed"
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(model=model, input="!crash")
    assert caught.value.code == "worker_crashed"
    assert client.responses.create(model=model, input="hi").status == "completed"


def test_waiting_and_silence_are_bridged_with_events(small):
    """Codex ignores comments, so every sign of life is an event, and only numbered ones."""
    small.post("/v1/models/slow/unload", {})
    loading = small.post("/v1/responses", {"model": "slow", "input": "hi", "stream": True})
    events = events_of(loading.body)
    kinds = [kind for kind, _ in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.created") == 1
    assert kinds.count("response.in_progress") > 1
    assert kinds[-1] == "response.completed"
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))

    silent = events_of(small.post("/v1/responses", {"model": "fake", "input": "!slow 300 3", "stream": True}).body)
    kinds = [kind for kind, _ in silent]
    first_delta = kinds.index("response.output_text.delta")
    assert "response.in_progress" in kinds[first_delta:]
    assert [data["sequence_number"] for _, data in silent] == list(range(len(silent)))


async def test_the_async_client_streams_too(server):
    async with openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        stream = await client.responses.create(model="fake", input="a b", stream=True)
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
    assert text == "echo: a b"


def test_a_user_is_repeated_only_where_one_was_named(server):
    plain, named = (server.post("/v1/responses", {"model": "fake", "input": "hi", **m}) for m in ({}, {"user": "u"}))
    assert "user" not in plain.json()
    assert named.json()["user"] == "u"
