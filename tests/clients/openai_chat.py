"""openai-python, chat completions."""

from __future__ import annotations

import json
import os

import openai
from questions import FRANCE, MODEL, PARAMETERS, PARIS, RED, REPORT, SCHEMA, SEER, SQUARE, URL, WEATHER, check, done

client = openai.OpenAI(base_url=os.environ["ONECARD_URL"] + "/v1", _strict_response_validation=True)
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather of a city", "parameters": PARAMETERS},
}


def ask(messages: list, **fields):
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **fields)


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


assert ask(user(FRANCE)).choices[0].message.content == PARIS
done("turn")

chunks = list(ask(user(FRANCE), stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == PARIS
assert chunks[-1].usage.completion_tokens > 0
done("stream")

turns = user(WEATHER)
first = ask(turns, tools=[TOOL])
(call,) = first.choices[0].message.tool_calls
assert json.loads(call.function.arguments) == {"city": "Paris"}
turns += [first.choices[0].message.model_dump(exclude_none=True)]
turns += [{"role": "tool", "tool_call_id": call.id, "content": REPORT}]
assert "sunny" in ask(turns, tools=[TOOL]).choices[0].message.content
done("tools")

schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
check(json.loads(ask(user(FRANCE), response_format=schema, max_tokens=200).choices[0].message.content))
done("schema")

shown: list = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": SQUARE}]
seen = client.chat.completions.create(model=SEER, messages=[{"role": "user", "content": shown}], temperature=0)
assert seen.choices[0].message.content == RED
done("image")
