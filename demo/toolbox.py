"""The functions the demo may be given: their JSON schemas, in the many shapes that real clients write them."""

import json
import random
from typing import Any

Json = dict[str, Any]

_WEATHER_TEXTS = (
    "Get the weather in a city.",
    "Get the current weather for a city.",
    "Get the current weather in a given location.",
    "Return the weather of a city",
    "Weather for a city.",
)
_CITY_TEXTS = ("The city", "City name", "The name of the city, e.g. Paris", "The city and country")
_ADD_TEXTS = ("Add two integers.", "Add two numbers.", "Returns a + b", "The sum of two integers", "Add a and b.")
_OTHERS: tuple[tuple[str, str, Json], ...] = (
    ("get_time", "Get the time in a city.", {"city": {"type": "string"}}),
    ("search", "Search the web.", {"query": {"type": "string"}}),
    ("send_email", "Send an email.", {"to": {"type": "string"}, "text": {"type": "string"}}),
    ("get_stock_price", "Get the price of a stock.", {"symbol": {"type": "string"}}),
    ("read_file", "Read a file.", {"path": {"type": "string"}}),
    ("set_alarm", "Set an alarm.", {"hour": {"type": "integer"}, "minute": {"type": "integer"}}),
    ("translate", "Translate a text.", {"text": {"type": "string"}, "language": {"type": "string"}}),
)


def function_tool(name: str, description: str, properties: Json) -> Json:
    """The plain OpenAI form of a function tool in which every property is required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


GET_WEATHER: Json = function_tool("get_weather", "Get the weather in a city.", {"city": {"type": "string"}})
ADD: Json = function_tool("add", "Add two integers.", {"a": {"type": "integer"}, "b": {"type": "integer"}})


def random_toolset(rng: random.Random) -> list[Json]:
    """One or two of the documented functions, now and then a stranger, in any order and some dialects of schema."""
    tools = rng.choice(([_weather], [_add], [_weather, _add], [_add, _weather]))
    made = [make(rng) for make in tools]
    if rng.random() < 0.12:
        name, text, properties = rng.choice(_OTHERS)
        made.insert(rng.randint(0, len(made)), function_tool(name, text, properties))
    return made


def find_tool(tools: list[Json], name: str) -> Json | None:
    """The named function's declaration, or None when the request does not offer it."""
    return next((tool["function"] for tool in tools if tool["function"]["name"] == name), None)


def call_text(name: str, arguments: Json | str) -> str:
    """One tool call as the model writes it; arguments may already be JSON text."""
    body = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {body}}}\n</tool_call>'


def _weather(rng: random.Random) -> Json:
    city: Json = {"type": "string"}
    if rng.random() < 0.3:
        city["description"] = rng.choice(_CITY_TEXTS)
    return _dialect(rng, "get_weather", rng.choice(_WEATHER_TEXTS), {"city": city})


def _add(rng: random.Random) -> Json:
    kind = "integer" if rng.random() < 0.75 else "number"
    return _dialect(rng, "add", rng.choice(_ADD_TEXTS), {key: {"type": kind} for key in ("a", "b")})


def _dialect(rng: random.Random, name: str, text: str, properties: Json) -> Json:
    tool = function_tool(name, text, properties)
    if rng.random() < 0.1:
        del tool["function"]["description"]
    if rng.random() < 0.1:
        tool["function"]["parameters"]["additionalProperties"] = False
    return _sorted(tool) if rng.random() < 0.1 else tool


def _sorted(tool: Json) -> Json:
    ordered: Json = json.loads(json.dumps(tool, sort_keys=True))
    return ordered
