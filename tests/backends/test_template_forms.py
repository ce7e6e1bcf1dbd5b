"""One conversation for templates that take arguments, contents and tools in different forms."""

from __future__ import annotations

from typing import Any

import pytest

from backends.engine import JobError
from backends.prompts.chat_template import ChatTemplate
from server.schemas.chat import parse_chat

ITEMS = "{% for k, v in c.arguments|items %}<{{ k }}>{{ v }}{% endfor %}"
SPLICED = "{{ '<args>' + c.arguments }}"
PLAIN = "{{ c.arguments }}"
TOJSON = "{{ c.arguments | tojson }}"
EITHER = "{% if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}"


def template(inner: str, before: str = "") -> ChatTemplate:
    source = (
        "{# <tool_call> tools #}{% for m in messages %}" + before + "{% for t in m.tool_calls or [] %}"
        "{% set c = t.function %}[{{ c.name }}:" + inner + "]{% endfor %}{% endfor %}"
    )
    return ChatTemplate(source, special_tokens={})


def history(*arguments: Any) -> list[dict[str, Any]]:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": a}} for i, a in enumerate(arguments)
    ]
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": {"t": 5}} for call in calls),
    ]


def rendered(made: ChatTemplate, messages: list[dict[str, Any]], **fields: Any) -> str:
    prompt = parse_chat({"model": "m", "messages": messages, **fields}).prompt()
    return made.render(prompt.messages, tools=prompt.tools)


WHOLE = '{"city": "P"}'
CASES = [
    (ITEMS, WHOLE, "[f:<city>P]"),
    (ITEMS, {"city": "P"}, "[f:<city>P]"),
    (ITEMS, "", "[f:]"),
    (ITEMS, "  ", "[f:]"),
    (ITEMS, None, "[f:]"),
    (ITEMS, "null", "[f:]"),
    (ITEMS, '{"city": "P', "[f:<city>P]"),
    (ITEMS, '{"city": "P", "da', "[f:<city>P]"),
    (ITEMS, "[1]", "[f:<arguments>[1]]"),
    (ITEMS, "Paris", "[f:<arguments>Paris]"),
    (SPLICED, WHOLE, f"[f:<args>{WHOLE}]"),
    (SPLICED, "", "[f:<args>{}]"),
    (SPLICED, None, "[f:<args>{}]"),
    (SPLICED, '{"city": "P', '[f:<args>{"city": "P]'),
    (SPLICED, "[1]", "[f:<args>[1]]"),
    (PLAIN, WHOLE, f"[f:{WHOLE}]"),
    (PLAIN, {"a": None, "b": True}, '[f:{"a": null, "b": true}]'),
    (PLAIN, "", "[f:{}]"),
    (PLAIN, "[1]", "[f:[1]]"),
    (TOJSON, WHOLE, f"[f:{WHOLE}]"),
    (TOJSON, None, "[f:{}]"),
    (EITHER, "", "[f:{}]"),
    (EITHER, '{"city": "P', '[f:{"city": "P]'),
]


@pytest.mark.parametrize(("inner", "arguments", "told"), CASES, ids=range(len(CASES)))
def test_arguments_come_in_a_form_that_the_template_survives(inner: str, arguments: Any, told: str) -> None:
    assert rendered(template(inner), history(arguments)) == told


@pytest.mark.parametrize("inner", [ITEMS, SPLICED])
def test_whole_and_cut_calls_may_stand_side_by_side(inner: str) -> None:
    assert rendered(template(inner), history(WHOLE, '{"city": "Q')).count("[f:") == 2


CONTENTS = [
    "{% if m.tool_calls %}{{ m.content + '!' }}{% endif %}",
    "{% if m.tool_calls and m.content is not none and m.content|length > 0 %}{{ raise_exception('no') }}{% endif %}",
    "{% if m.tool_calls and m.content is not none %}{{ raise_exception('content beside calls is none') }}{% endif %}",
]


@pytest.mark.parametrize("before", CONTENTS)
def test_content_beside_calls_is_empty_or_none_as_the_template_wants_it(before: str) -> None:
    assert f"[f:{WHOLE}]" in rendered(template(EITHER, before), history(WHOLE))


def test_a_template_that_reads_parts_alone_gets_parts() -> None:
    part = "{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    source = f"{{% for m in messages %}}{{% for c in m.content %}}{part}{{% endfor %}}{{% endfor %}}"
    made = ChatTemplate(source, special_tokens={})
    assert made.render([{"role": "user", "content": "hello"}]) == "hello"


INDEXED = ["m.content[0]['text']", "m['content'][0].text", "(m.content | first).text", "m.content[-1]['text'] | trim"]


@pytest.mark.parametrize("inner", INDEXED)
@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "user", "content": ""}], "<>"),
        ([{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}], "<hello><>"),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "hello"}], "<><hello>"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}]}], "<>"),
        ([*history(WHOLE)[:2], {"role": "tool", "tool_call_id": "c0", "content": ""}], "<hi><><>"),
    ],
)
def test_a_template_that_indexes_parts_reads_empty_content_as_empty_text(
    inner: str, messages: list[dict[str, Any]], told: str
) -> None:
    made = ChatTemplate(
        "{# <tool_call> tools #}{% for m in messages %}<{{ " + inner + " }}>{% endfor %}", special_tokens={}
    )
    assert rendered(made, messages) == told


def test_a_template_that_takes_both_keeps_its_text() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}P{{ m.content[0].text }}"
        "{% endif %}{% endfor %}"
    )
    assert ChatTemplate(source, special_tokens={}).render([{"role": "user", "content": "hello"}]) == "Shello"


def test_a_tool_has_the_keys_that_a_template_needs() -> None:
    source = (
        "{% for t in tools %}{{ t.function.name + t.function.description }}"
        "{% for k, v in t.function.parameters.properties|items %}{{ k }}{% endfor %}{% endfor %}"
    )
    made = ChatTemplate("{# <tool_call> #}" + source, special_tokens={})
    assert rendered(made, history()[:1], tools=[{"type": "function", "function": {"name": "f"}}]) == "f"


def test_what_fails_in_every_form_is_told_in_the_words_of_the_first() -> None:
    made = template("{{ c.arguments.city + 1 }}")
    with pytest.raises(JobError, match="can only concatenate str"):
        rendered(made, history(WHOLE))


def test_results_of_tools_may_be_objects() -> None:
    source = (
        "{# <tool_call> tools #}{% for m in messages %}{% if m.role == 'tool' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert rendered(ChatTemplate(source, special_tokens={}), history("")) == '{"t":5}'
