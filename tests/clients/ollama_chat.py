"""ollama-python."""

from __future__ import annotations

import json
import os

import ollama
from questions import FRANCE, MODEL, PARIS, PICTURE, RED, REPORT, SCHEMA, SEER, SQUARE, WEATHER, check, done

client = ollama.Client(host=os.environ["ONECARD_URL"])


def ask(messages: list, **fields):
    return client.chat(model=MODEL, messages=messages, options={"temperature": 0, "num_predict": 200}, **fields)


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def get_weather(city: str) -> str:
    """
    Get the weather of a city

    Args:
      city: Name of the city
    """
    return REPORT


assert ask(user(FRANCE)).message.content == PARIS
assert client.generate(model=MODEL, prompt=FRANCE, options={"temperature": 0}).response == PARIS
assert MODEL in [model.model for model in client.list().models]
assert "completion" in (client.show(MODEL).capabilities or [])
done("turn")

assert "".join(part.message.content for part in ask(user(FRANCE), stream=True)) == PARIS
done("stream")

turns = user(WEATHER)
first = ask(turns, tools=[get_weather]).message
(call,) = first.tool_calls
assert call.function.arguments == {"city": "Paris"}
turns += [first, {"role": "tool", "content": get_weather(**call.function.arguments), "tool_name": call.function.name}]
assert "sunny" in ask(turns, tools=[get_weather]).message.content
done("tools")

check(json.loads(ask(user(FRANCE), format=SCHEMA).message.content))
done("schema")

shown: list = [{"role": "user", "content": SQUARE, "images": [PICTURE]}]
assert client.chat(model=SEER, messages=shown, options={"temperature": 0}).message.content == RED
done("image")
