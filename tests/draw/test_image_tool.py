"""`image_generation` in `/v1/responses`: a chat model calls it, the server draws, and the next turn knows of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from tests.http.conftest import Server

pytestmark = pytest.mark.engine
TOOL: dict[str, Any] = {"type": "image_generation", "model": "toy", "size": "64x64", "partial_images": 1, "seed": 3}
FORCED: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "image_generation"}, "max_output_tokens": 200}
KINDS = [
    "response.output_item.added",
    "response.image_generation_call.in_progress",
    "response.image_generation_call.generating",
    "response.image_generation_call.partial_image",
    "response.image_generation_call.completed",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_a_call_is_drawn_as_it_streams_and_whole(client: openai.OpenAI) -> None:
    """Given a call that is required, when streamed, then OpenAI's events come in order; whole, the same image; and the
    next turn goes on from it, by id and by items."""
    asked = {"model": "chat", "input": "What is the capital of France?", "temperature": 0, **FORCED}
    events = list(client.responses.create(stream=True, **asked))
    assert [event.type for event in events if event.type in KINDS] == KINDS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    (item,) = events[-1].response.output
    assert (item.type, item.status) == ("image_generation_call", "completed")
    assert Image.open(io.BytesIO(base64.b64decode(item.result))).size == (64, 64)
    whole = client.responses.create(**asked)
    assert whole.output[0].result == item.result
    for again in ({"previous_response_id": whole.id}, {"input": [item.to_dict()]}):
        earlier = again.pop("input", [])
        said: Any = [*earlier, {"role": "user", "content": "What is the capital of France?"}]
        after = client.responses.create(model="chat", input=said, temperature=0, max_output_tokens=40, **again)
        assert after.output_text


def test_what_cannot_be_drawn_fails_as_an_item(client: openai.OpenAI) -> None:
    """Given steps that the scheduler has not, then the response is there and its image is told to have failed."""
    tool = {**TOOL, "scheduler": "lcm", "steps": 120}
    made = client.responses.create(model="chat", input="Draw red.", **{**FORCED, "tools": [tool]}, temperature=0)
    item: Any = made.output[0]
    assert (made.status, item.status, item.result) == ("completed", "failed", None)
    assert "120 steps" in item.error.message


def test_a_call_that_is_cut_is_not_drawn(client: openai.OpenAI) -> None:
    """Given too few tokens for a call, then the response is incomplete and its image is told to have failed."""
    made = client.responses.create(model="chat", input="Draw red.", **{**FORCED, "max_output_tokens": 20})
    item: Any = made.output[-1]
    assert (made.status, item.type, item.status) == ("incomplete", "image_generation_call", "failed")
    assert "cut short" in item.error.message


def test_what_of_the_tool_has_no_effect_is_named(server: Server) -> None:
    """Given a prompt in the tool, which the model is to say, then the answer names it."""
    fields = {"tools": [{**TOOL, "prompt": "a cat", "action": "edit"}], "tool_choice": "none", "max_output_tokens": 1}
    answer = server.post("/v1/responses", {"model": "chat", "input": "Hello.", **fields}, timeout=300)
    assert answer.status == 200, answer.body
    named = {"tools[image_generation].action", "tools[image_generation].prompt"}
    assert {*answer.headers["x-onecard-ignored"].replace(" ", "").split(",")} == named


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"size": "63x64"}, "tools[0].size", "no multiple of 8"),
        ({"size": "512x512"}, "tools[0].size", "loaded for"),
        ({"model": "gone"}, "tools[0].model", "gone"),
        ({"model": "chat"}, "tools[0].model", "draws no images"),
        ({"background": "transparent"}, "tools[0].background", "not supported"),
    ],
)
def test_what_the_tool_cannot_be_is_refused(server: Server, fields: dict[str, Any], param: str, sentence: str) -> None:
    answer = server.post("/v1/responses", {"model": "chat", "input": "Red.", **FORCED, "tools": [{**TOOL, **fields}]})
    assert answer.status in (400, 404), answer.body
    assert (answer.error["param"], sentence in answer.error["message"]) == (param, True), answer.body
