"""`/v1/responses/compact` with OpenAI's own client: one item stands for a conversation and comes back as input."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from backends.messages import Delta
from server.errors import ApiError
from server.output.compaction import Compaction
from server.output.frame import Head, Usage
from server.output.sorting import Sorter
from server.output.splitters import splitters
from tests.http.conftest import KEY

ASKED = [
    {"role": "user", "content": "We launch on Tuesday."},
    {"role": "assistant", "content": "Understood, and support is told before. " * 3},
]
NEXT = {"role": "user", "content": "when?"}


def counted(client, item) -> int:
    return client.responses.input_tokens.count(model="fake", input=[item, NEXT]).input_tokens


def test_a_conversation_becomes_one_item_that_is_given_back(client):
    done = client.responses.compact(model="fake", input=ASKED, instructions="be brief")

    (item,) = done.output
    assert (done.object, item.type) == ("response.compaction", "compaction")
    assert item.id.startswith("cmp_")
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
    # The engine of the tests repeats what it was asked last, so that is the summary.
    answer = client.responses.create(model="fake", input=[item.model_dump(), NEXT])
    assert answer.output_text.startswith("echo: Summary of the conversation so far:")
    assert "Answer with the summary alone." in answer.output_text
    assert "We launch on Tuesday." in answer.output_text
    assert answer.output_text.endswith("when?")
    listed = client.responses.input_items.list(answer.id, order="asc").data
    assert listed[0].type == "compaction"


def test_a_stored_response_is_summed_up(client):
    first = client.responses.create(model="fake", input="!say blue it is")
    done = client.responses.compact(model="fake", previous_response_id=first.id, input=None)
    plain = client.responses.compact(model="fake", input="!say blue it is")

    assert done.usage.input_tokens > plain.usage.input_tokens
    again = client.responses.compact(model="fake", input=[done.output[0].model_dump(), NEXT])
    assert counted(client, again.output[0].model_dump()) > len("when?")


def test_what_cannot_be_summed_up_or_read_is_refused_by_name(client, server):
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.compact(model="fake", previous_response_id="resp_nope")
    assert lost.value.code == "previous_response_not_found"
    foreign = {"type": "compaction", "encrypted_content": "gAAAAAB"}
    for path in ("/v1/responses", "/v1/responses/compact"):
        answer = server.post(path, {"model": "fake", "input": [foreign, NEXT]})
        assert (answer.status, answer.error["param"]) == (400, "input[0].encrypted_content")
    trigger = server.post("/v1/responses", {"model": "fake", "input": [NEXT, {"type": "compaction_trigger"}]})
    assert (trigger.status, trigger.error["param"]) == (400, "input[1].type")
    assert server.post("/v1/responses/compact", {"input": "x"}).error["param"] == "model"
    held = server.post("/v1/responses/compact", {"model": "fake", "input": "x", "conversation": "c"})
    assert (held.status, held.error["param"]) == (400, "conversation")
    contents: list[Any] = ["", " \n\t\u3000", [{"type": "input_text", "text": " "}]]
    inputs = [None, [], "", " \n", *([{"role": "user", "content": content}] for content in contents)]
    for nothing in ({}, *({"input": value} for value in inputs)):
        empty = server.post("/v1/responses/compact", {"model": "fake", "instructions": "be brief", **nothing})
        assert (empty.status, empty.error["param"]) == (400, "input"), nothing
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.compact(model="fake", input="x" * 5000)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/responses/compact", 405, "POST"),
        ("DELETE", "/v1/responses/compact", 405, "POST"),
        ("GET", "/v1/responses/input_tokens", 405, "POST"),
        ("POST", "/v1/responses/resp_1", 405, "DELETE, GET, HEAD"),
        ("POST", "/v1/responses/resp_1/input_items", 405, "GET, HEAD"),
        ("GET", "/v1/models/fake/load", 405, "POST"),
        ("POST", "/v1/models/fake", 405, "DELETE, GET, HEAD"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("GET", "/v1/messages", 405, "POST"),
        ("POST", "/v1/responses/resp_1/cancel", 404, None),
        ("GET", "/v1/responses/resp_1/nope", 404, None),
        ("POST", "/v1/messages/batches", 404, None),
    ],
)
def test_a_parameter_of_a_path_swallows_no_name(server, method, path, status, allow):
    answer = server.call(method, path, {} if method == "POST" else None)

    assert (answer.status, answer.headers.get("allow")) == (status, allow)
    assert answer.error["code"] == ("method_not_allowed" if status == 405 else "unknown_url")


def test_a_summary_that_was_cut_stands_for_no_conversation():
    cut = Compaction(Sorter(splitters([], None, None)()), "cmp_1", [])
    cut.add(Delta("j", 0, "The user wants", 3, None, "length"), 0)

    with pytest.raises(ApiError, match="cut off before its end") as told:
        cut.body(Head("resp_1", 0, "fake", ""), Usage())
    assert told.value.headers["x-should-retry"] == "false"


def test_priority_and_keep_alive_are_those_of_the_request(server, keyed):
    asked = {"model": "fake", "input": "hello", "keep_alive": "5m"}

    assert server.post("/v1/responses/compact", asked).status == 200
    refused = keyed.post("/v1/responses/compact", asked, headers={"x-api-key": KEY})
    assert (refused.status, refused.error["param"]) == (403, "keep_alive")
