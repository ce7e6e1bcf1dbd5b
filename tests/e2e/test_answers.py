"""Schemas, tools and reasoning as clients meet them: the real SDK, the real server, the real engine."""

from __future__ import annotations

import json
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from tests.constraints.schemas import PYDANTIC, TREE, nested, thing
from tests.e2e.server import Server

pytestmark = pytest.mark.engine

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
PARIS: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two integers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
TOOLS: Any = [WEATHER, ADD]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
CITY = thing(city={"type": "string", "maxLength": 20}, size={"enum": ["small", "large"]})


def form(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


class City(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    size: Literal["small", "large"]


def test_the_sdk_parses_an_answer_into_a_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="demo", messages=FRANCE, response_format=City, temperature=0)

    assert isinstance(answer.choices[0].message.parsed, City)


def test_a_streamed_answer_under_a_schema_is_the_same_as_a_whole_one(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "messages": FRANCE, "temperature": 0, "response_format": form(CITY)}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    jsonschema.validate(json.loads(text), CITY)
    assert (whole.choices[0].finish_reason, chunks[-1].choices[0].finish_reason) == ("stop", "stop")


def test_an_answer_may_be_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=FRANCE, response_format={"type": "json_object"}, temperature=0
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_reasoning_comes_first_and_apart_and_is_counted(client: openai.OpenAI) -> None:
    fields: Any = {
        "model": "demo",
        "messages": FRANCE,
        "temperature": 0,
        "response_format": form(CITY),
        "reasoning_effort": "high",
    }
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))

    thought = whole.choices[0].message.model_extra["reasoning_content"]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    streamed = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert "Paris" in thought
    assert streamed == thought
    jsonschema.validate(json.loads(whole.choices[0].message.content or ""), CITY)
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert 0 < (whole.usage.completion_tokens_details.reasoning_tokens or 0) < whole.usage.completion_tokens


def test_reasoning_stops_at_its_budget(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=FRANCE,
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget": 4},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert 4 <= (answer.usage.completion_tokens_details.reasoning_tokens or 0) <= 8
    assert answer.choices[0].message.model_extra["reasoning_content"].startswith("The country")  # type: ignore[index]


def finished_as(server: Server, reason: str) -> float:
    return server.metric("onecard_request_success_total", model_name="demo", finished_reason=reason)


def test_a_call_is_streamed_in_openais_shape_and_counted_as_one(server: Server, client: openai.OpenAI) -> None:
    before = finished_as(server, "tool_calls")
    chunks = list(client.chat.completions.create(model="demo", messages=PARIS, tools=TOOLS, temperature=0, stream=True))

    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    first, *rest = parts
    assert first.id is not None
    assert first.type == "function"
    assert first.function is not None
    assert (first.function.name, first.function.arguments) == ("get_weather", "")
    assert all(part.id is None and part.function and part.function.name is None for part in rest)
    assert rest
    assert json.loads("".join(part.function.arguments or "" for part in rest if part.function)) == {"city": "Paris"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert finished_as(server, "tool_calls") == before + 1


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "add"}),
        ({"type": "function", "function": {"name": "add"}}, {"add"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]},
            },
            {"add"},
        ),
    ],
)
@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_that_is_required_is_made(client: openai.OpenAI, choice: Any, names: set[str], thinking: bool) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=FRANCE,
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in names
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
    assert answer.choices[0].finish_reason == "tool_calls"


def test_tools_stand_beside_a_schema(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "tools": TOOLS, "temperature": 0, "response_format": form(CITY)}
    called = client.chat.completions.create(messages=PARIS, **fields).choices[0]
    said = client.chat.completions.create(messages=FRANCE, tool_choice="none", **fields).choices[0]

    if called.message.tool_calls:
        assert called.finish_reason == "tool_calls"
    else:
        jsonschema.validate(json.loads(called.message.content or ""), CITY)
    assert not said.message.tool_calls
    jsonschema.validate(json.loads(said.message.content or ""), CITY)


def test_a_model_without_tools_in_its_template_calls_them_all_the_same(client: openai.OpenAI) -> None:
    fields: Any = {"model": "canary", "tools": TOOLS, "temperature": 0, "max_tokens": 900}
    fields |= {"tool_choice": "required", "parallel_tool_calls": False}
    forced = client.chat.completions.create(messages=FRANCE, **fields).choices[0]

    for call in forced.message.tool_calls or []:
        assert call.type == "function"
        if forced.finish_reason == "tool_calls":
            jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
    assert forced.finish_reason in ("tool_calls", "length")
    assert not forced.message.content


def test_text_completions_take_forms_too(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "prompt": "Paris", "temperature": 1, "max_tokens": 200, "seed": 1}
    by_pattern = client.completions.create(**fields, extra_body={"guided_regex": "[0-9]{3}-[a-f]{2}"})
    by_choice = client.completions.create(**fields, extra_body={"guided_choice": ["a.b", "ü"]})
    by_schema = client.completions.create(**fields, extra_body={"response_format": form(CITY)})

    assert len(by_pattern.choices[0].text) == 6
    assert by_choice.choices[0].text in ("a.b", "ü")
    jsonschema.validate(json.loads(by_schema.choices[0].text), CITY)


def test_the_best_of_several_is_the_likeliest(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "prompt": "The capital of", "max_tokens": 6, "seed": 7, "temperature": 1.5}
    every = client.completions.create(**fields, n=6, logprobs=0)
    best = client.completions.create(**fields, best_of=6)

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert best.choices[0].text == max(every.choices, key=mean).text
    assert len(best.choices) == 1
    assert best.choices[0].logprobs is None
    assert best.usage is not None
    assert every.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"response_format": form(nested({"type": "string", "pattern": "(" * 60_000}))}, ".inner.pattern"),
    ({"response_format": form(nested({"type": "string", "pattern": "(?<=a)b"}))}, ".inner"),
    ({"response_format": form({"$ref": "#"})}, "schema.$ref"),
    ({"response_format": form(nested({"$ref": "http://169.254.169.254/"}))}, ".inner.$ref"),
    ({"response_format": form(nested({"type": "array", "minItems": 10**9}))}, ".inner.minItems"),
    ({"response_format": form({"enum": [str(i) for i in range(100_000)]})}, "schema"),
    ({"response_format": form(thing(**{f"p{i}": {} for i in range(10_000)}))}, "schema.properties"),
    ({"response_format": {"type": "sound"}}, "response_format.type"),
    ({"response_format": form(123)}, "response_format.json_schema.schema"),
    ({"extra_body": {"grammar": "root ::= root"}}, "grammar"),
    ({"tools": [{"type": "function", "function": {"name": 'a"b\n'}}]}, "tools[0].function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "hiccup"}}}]},
        "tools[0].function.parameters.type",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": nested({"type": "string", "pattern": r"(a)\1"})},
                }
            ]
        },
        "tools[0].function.parameters.properties.outer.properties.inner",
    ),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "absent"}}}, "tool_choice"),
    ({"extra_body": {"guided_regex": "(?=x)"}}, "guided_regex"),
]


@pytest.mark.parametrize(("fields", "param"), HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_hostile_forms_are_refused_by_name_at_once(
    server: Server, client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    client.chat.completions.create(model="demo", messages=FRANCE, max_tokens=1)
    workers = {worker.pid for worker in server.workers()}
    before_s = server.cpu_s()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=FRANCE, **fields)
    assert server.cpu_s() - before_s < 1
    error: Any = caught.value.body
    assert error["param"].endswith(param)
    assert {worker.pid for worker in server.workers()} == workers


def test_real_schemas_are_served(client: openai.OpenAI) -> None:
    texts = {"type": "array", "items": thing(x={"type": "string", "maxLength": 65536}), "maxItems": 1}
    wide = thing(n={"type": "integer", "maximum": 9007199254740991}, t=texts)
    for schema in (PYDANTIC, TREE, wide):
        answer = client.chat.completions.create(
            model="demo", messages=FRANCE, response_format=form(schema), temperature=0, max_tokens=1500
        )
        if answer.choices[0].finish_reason == "stop":
            jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


def test_white_space_in_json_is_left_out_where_that_is_asked_for(client: openai.OpenAI) -> None:
    properties = {"a": {"enum": [1]}, "b": {"enum": ["x y"]}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    ask: Any = {"model": "demo", "temperature": 0, "max_tokens": 60}
    compact: Any = {"extra_body": {"json_whitespace": "compact", "response_format": form}}
    answer = client.chat.completions.create(**ask, messages=PARIS, **compact).choices[0]
    text = client.completions.create(**ask, prompt="JSON:", **compact).choices[0]
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    ask |= {"messages": PARIS, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    called = client.chat.completions.create(**ask, extra_body={"json_whitespace": "compact"}).choices[0]

    assert answer.message.content == text.text == '{"a":1,"b":"x y"}'
    assert called.message.tool_calls[0].function.arguments == '{"a":1,"b":"x y"}'
