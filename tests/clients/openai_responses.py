"""openai-python, responses: stateless and continued by id."""

from __future__ import annotations

import json
import os

import openai
from questions import FRANCE, MODEL, PARAMETERS, PARIS, RED, REPORT, SCHEMA, SEER, SQUARE, URL, WEATHER, check, done

client = openai.OpenAI(base_url=os.environ["ONECARD_URL"] + "/v1", _strict_response_validation=True)
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": PARAMETERS,
    "strict": False,
}


def ask(items, **fields):
    return client.responses.create(model=MODEL, input=items, temperature=0, **fields)


first = ask(FRANCE)
assert first.output_text == PARIS
assert "Rome" in ask("And of Italy?", previous_response_id=first.id).output_text
done("turn")

with client.responses.stream(model=MODEL, input=FRANCE, temperature=0) as stream:
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == stream.get_final_response().output_text == PARIS
done("stream")

asked = ask(WEATHER, tools=[TOOL])
(call,) = [item for item in asked.output if item.type == "function_call"]
assert json.loads(call.arguments) == {"city": "Paris"}
result = {"type": "function_call_output", "call_id": call.call_id, "output": REPORT}
assert "sunny" in ask([result], previous_response_id=asked.id, tools=[TOOL]).output_text
history = [{"role": "user", "content": WEATHER}, *[item.to_dict() for item in asked.output], result]
assert "sunny" in ask(history, tools=[TOOL], store=False).output_text
done("tools")

form = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}}
check(json.loads(ask(FRANCE, text=form, max_output_tokens=200).output_text))
done("schema")

shown: list = [{"type": "input_image", "image_url": URL, "detail": "auto"}, {"type": "input_text", "text": SQUARE}]
seen = client.responses.create(model=SEER, input=[{"role": "user", "content": shown}], temperature=0)
assert seen.output_text == RED
done("image")
