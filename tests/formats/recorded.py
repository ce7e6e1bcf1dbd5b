"""What models of each family write when they call tools, as their templates and documentation show it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"numbers": {"type": "array", "items": {"type": "number"}}, "round": {"type": "boolean"}},
            "required": ["numbers"],
        },
    },
}
TOOLS = [WEATHER, ADD]


def called(number: int, name: str, **arguments: object) -> list[Piece]:
    """A call as pieces; arguments are compared as JSON."""
    return [CallBegins(number, f"id{number}", name), CallArguments(number, json.dumps(arguments))]


PARIS = called(0, "get_weather", city="Paris")
BOTH = [*called(0, "get_weather", city='St. "X" {é}', days=2), *called(1, "add", numbers=[1, 2.5], round=True)]
CITY = r"St. \"X\" {é}"


class Recorded(NamedTuple):
    """An answer, what it means, and whether the format's grammar must accept it as it stands."""

    format: str
    text: str
    pieces: list[Piece]
    grammatical: bool = True


_SEP = "<｜tool▁sep｜>"

RECORDED = [
    Recorded("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', PARIS),
    Recorded(
        "hermes",
        f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{CITY}", "days": 2}}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"numbers": [1, 2.5], "round": true}}\n</tool_call>',
        [Content("I look."), *BOTH],
    ),
    Recorded(  # Hermes 2 Pro was trained with the arguments first
        "hermes",
        '<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>',
        PARIS,
        grammatical=False,
    ),
    Recorded("llama", '{"name": "get_weather", "parameters": {"city": "Paris"}}', PARIS),
    Recorded("llama", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', PARIS),
    Recorded(
        "llama",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {{"city": "{CITY}", "days": 2}}}}; '
        '{"name": "add", "parameters": {"numbers": [1, 2.5], "round": true}}',
        BOTH,
    ),
    Recorded(
        "llama",
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}',
        PARIS,
        grammatical=False,
    ),
    Recorded("llama", "<b>No call</b> {at all}", [Content("<b>No call</b> {at all}")]),
    Recorded("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', PARIS),
    Recorded(
        "mistral",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {{"city": "{CITY}", "days": 2}}}}, '
        '{"name": "add", "arguments": {"numbers": [1, 2.5], "round": true}}]',
        BOTH,
    ),
    Recorded(
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "VvvODy9mT"}]',
        PARIS,
        grammatical=False,
    ),
    Recorded("mistral-args", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', PARIS),
    Recorded(
        "mistral-args",
        f'Sure.[TOOL_CALLS]get_weather[ARGS]{{"city": "{CITY}", "days": 2}}'
        '[TOOL_CALLS]add[ARGS]{"numbers": [1, 2.5], "round": true}',
        [Content("Sure."), *BOTH],
    ),
    Recorded(
        "mistral-args", '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}', PARIS, grammatical=False
    ),
    Recorded("phi", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>', PARIS),
    Recorded(
        "phi",
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {{"city": "{CITY}", "days": 2}}}}, '
        '{"name": "add", "arguments": {"numbers": [1, 2.5], "round": true}}]<|/tool_call|>',
        BOTH,
    ),
    Recorded(
        "phi",
        '<|tool_call|>{"name": "get_weather", "arguments": {"city": "Paris"}}<|/tool_call|>',
        PARIS,
        grammatical=False,
    ),
    Recorded("gemma", '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', PARIS),
    Recorded(
        "gemma",
        '<|tool_call>call:get_weather{city:<|"|>St. "X" {é}<|"|>,days:2}<tool_call|>'
        "<|tool_call>call:add{numbers:[1,2.5],round:true}<tool_call|>",
        BOTH,
    ),
    Recorded(
        "function-gemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,unit:<escape>C<escape>}<end_function_call>",
        called(0, "get_weather", city="Paris", unit="C"),
    ),
    Recorded(
        "deepseek",
        f'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather{_SEP}{{"city": "Paris"}}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        PARIS,
    ),
    Recorded(
        "deepseek",
        f'Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather{_SEP}{{"city": "{CITY}", "days": 2}}'
        f'<｜tool▁call▁end｜><｜tool▁call▁begin｜>add{_SEP}{{"numbers": [1, 2.5], "round": true}}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        [Content("Let me see."), *BOTH],
    ),
    Recorded(
        "deepseek-r1",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function{_SEP}get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        PARIS,
    ),
    Recorded(
        "deepseek-r1",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function{_SEP}get_weather\n```json\n"
        f'{{"city": "{CITY}", "days": 2}}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function{_SEP}add\n```json\n'
        '{"numbers": [1, 2.5], "round": true}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        BOTH,
    ),
    Recorded("harmony", "<|channel|>final<|message|>It is sunny.", [Content("It is sunny.")]),
    Recorded(
        "harmony",
        "<|channel|>analysis<|message|>Need the tool.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}',
        [Reasoning("Need the tool."), *PARIS],
        grammatical=False,  # no grammar sees reasoning
    ),
    Recorded(
        "harmony",
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Paris"}',
        PARIS,
    ),
    Recorded(
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"numbers": [1]}',
        [Content("I look."), *called(0, "add", numbers=[1])],
    ),
    Recorded(
        "harmony",
        '<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
        PARIS,
        grammatical=False,
    ),
    Recorded(
        "qwen-xml",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        PARIS,
    ),
    Recorded(
        "qwen-xml",
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
        'St. "X" {é}\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=add>\n<parameter=numbers>\n[1, 2.5]\n</parameter>\n<parameter=round>\ntrue\n"
        "</parameter>\n</function>\n</tool_call>",
        [Content("I look."), *BOTH],
    ),
    Recorded(
        "qwen-xml",
        "I look.\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        [Content("I look."), *PARIS],
    ),
    Recorded(  # a text that looks like a number stays text where the schema says so
        "qwen-xml",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n75001\n</parameter>\n</function>\n</tool_call>",
        called(0, "get_weather", city="75001"),
    ),
    Recorded("generic", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', PARIS),
]

TEMPLATES = {
    "hermes": '{% if tools %}<tools>{% endif %}... <tool_call>\n{"name": \'',
    "qwen-xml": "{% if tools %}<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
    "llama": '{"name": function name, "parameters": dictionary} <|python_tag|> {{ "ipython" }}',
    "mistral": "[AVAILABLE_TOOLS]...[TOOL_CALLS] [",
    "mistral-args": "[AVAILABLE_TOOLS]...[TOOL_CALLS]{{ name }}[ARGS]",
    "phi": "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}",
    "gemma": "<|tool>declaration:... '<|tool_call>call:' + function['name'] + '{'",
    "function-gemma": "<start_function_call>call:",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>'",
    "deepseek-r1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>...'\\n' + '```json' + '\\n'",
    "harmony": "<|start|>assistant<|channel|>final<|message|>",
    "generic": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
}
"""The words by which each family's templates are known."""
