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
_NUMBER_TEXTS = ("The first number", "The second number", "A number", "An integer")
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
    """One to three function tools, documented ones and strangers, in any order and any dialect of schema."""
    kinds = rng.choices(("weather", "add", "both", "strangers"), (35, 20, 35, 10))[0]
    tools: list[Json] = []
    if kinds in ("weather", "both"):
        tools.append(_weather(rng))
    if kinds in ("add", "both"):
        tools.append(_add(rng))
    if kinds == "strangers" or rng.random() < 0.25:
        name, text, properties = rng.choice(_OTHERS)
        tools.append(_dialect(rng, name, text, {key: dict(value) for key, value in properties.items()}))
    rng.shuffle(tools)
    return tools


def find_tool(tools: list[Json], name: str) -> Json | None:
    """The named function's declaration, or None when the request does not offer it."""
    return next((tool["function"] for tool in tools if tool["function"]["name"] == name), None)


def city_key(weather: Json) -> str:
    """What this declaration of get_weather calls its city: city, or location as other documentation has it."""
    keys: list[str] = [key for key in weather["parameters"]["properties"] if key in ("city", "location")]
    return keys[0]


def call_text(name: str, arguments: Json | str) -> str:
    """One tool call as the model writes it; arguments may already be JSON text."""
    body = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {body}}}\n</tool_call>'


def _weather(rng: random.Random) -> Json:
    key = "location" if rng.random() < 0.15 else "city"
    city: Json = {"type": "string"}
    if rng.random() < 0.4:
        city["description"] = rng.choice(_CITY_TEXTS)
    properties: Json = {key: city}
    if rng.random() < 0.1:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    return _dialect(rng, "get_weather", rng.choice(_WEATHER_TEXTS), properties)


def _add(rng: random.Random) -> Json:
    kind = "integer" if rng.random() < 0.75 else "number"
    properties: Json = {key: {"type": kind} for key in ("a", "b")}
    if rng.random() < 0.2:
        for schema in properties.values():
            schema["description"] = rng.choice(_NUMBER_TEXTS)
    return _dialect(rng, "add", rng.choice(_ADD_TEXTS), properties)


def _dialect(rng: random.Random, name: str, text: str, properties: Json) -> Json:
    if rng.random() < 0.1:
        for key, schema in properties.items():
            schema["title"] = key.title()
    parameters: Json = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = [key for key in properties if key != "unit"]
    if rng.random() < 0.12:
        parameters["additionalProperties"] = False
    function: Json = {"name": name}
    if rng.random() < 0.8:
        function["description"] = text
    function["parameters"] = parameters
    if rng.random() < 0.06:
        function["strict"] = True
    tool: Json = {"type": "function", "function": function}
    return _sorted(tool) if rng.random() < 0.12 else tool


def _sorted(tool: Json) -> Json:
    ordered: Json = json.loads(json.dumps(tool, sort_keys=True))
    return ordered
