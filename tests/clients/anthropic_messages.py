"""Anthropic's own client, as Claude Code's SDK uses the same routes."""

from __future__ import annotations

import json
import os
from typing import Any

import anthropic
from questions import FRANCE, MODEL, PARAMETERS, PARIS, PICTURE, RED, REPORT, SCHEMA, SEER, SQUARE, WEATHER, check, done

client = anthropic.Anthropic(base_url=os.environ["ONECARD_URL"], _strict_response_validation=True)
TOOL: Any = {"name": "get_weather", "description": "Get the weather of a city", "input_schema": PARAMETERS}
GREEDY: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "extra_body": {"temperature": 0}}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def said(message: anthropic.types.Message) -> str:
    (block,) = message.content
    assert block.type == "text", block
    return block.text


assert said(client.messages.create(**GREEDY, messages=user(FRANCE))) == PARIS
assert client.messages.count_tokens(model=MODEL, messages=user(FRANCE)).input_tokens > 5
done("turn")

with client.messages.stream(**GREEDY, messages=user(FRANCE)) as stream:
    assert "".join(stream.text_stream) == PARIS
    assert stream.get_final_message().stop_reason == "end_turn"
done("stream")

turns = user(WEATHER)
first = client.messages.create(**GREEDY, messages=turns, tools=[TOOL])
(call,) = [block for block in first.content if block.type == "tool_use"]
assert (first.stop_reason, call.input) == ("tool_use", {"city": "Paris"})
turns += [
    {"role": "assistant", "content": first.content},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": REPORT}]},
]
assert "sunny" in said(client.messages.create(**GREEDY, messages=turns, tools=[TOOL]))
done("tools")

form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
check(json.loads(said(client.messages.create(**GREEDY, messages=user(FRANCE), output_config=form))))
done("schema")

image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
shown: list[Any] = [{"role": "user", "content": [image, {"type": "text", "text": SQUARE}]}]
assert said(client.messages.create(**{**GREEDY, "model": SEER}, messages=shown)) == RED
done("image")
