"""LangChain's ChatOpenAI."""

from __future__ import annotations

import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from questions import FRANCE, MODEL, PARIS, RED, REPORT, SCHEMA, SEER, SQUARE, URL, WEATHER, check, done

model = ChatOpenAI(model=MODEL, base_url=os.environ["ONECARD_URL"] + "/v1", temperature=0, max_tokens=200)


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    assert city == "Paris", city
    return REPORT


assert model.invoke(FRANCE).content == PARIS
done("turn")

assert "".join(chunk.content for chunk in model.stream(FRANCE)) == PARIS
done("stream")

able = model.bind_tools([get_weather])
turns = [HumanMessage(WEATHER), able.invoke(WEATHER)]
(call,) = turns[1].tool_calls
turns.append(ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]))
assert "sunny" in able.invoke(turns).content
done("tools")

schema = {"title": "city", "description": "a city", **SCHEMA}
check(model.with_structured_output(schema, method="json_schema", strict=True).invoke(FRANCE))
done("schema")

seer = ChatOpenAI(model=SEER, base_url=os.environ["ONECARD_URL"] + "/v1", temperature=0, max_tokens=200)
shown: list = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": SQUARE}]
assert seer.invoke([HumanMessage(shown)]).content == RED
done("image")
