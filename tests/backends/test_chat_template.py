"""Chat templates: strangers' programs in a box, and control tokens that only the template can write."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine import JobError
from backends.prompts.chat_template import ChatTemplate, Guard

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
USER = [{"role": "user", "content": "hi"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})


def test_it_renders_messages_and_the_generation_prompt() -> None:
    assert template(CHATML).render(USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_json_is_written_as_json_not_as_html() -> None:
    tools = [{"name": "f", "description": "ü<&>"}]

    assert (
        template("{# <tool_call> #}{{ tools | tojson }}").render(USER, tools=tools)
        == '[{"name": "f", "description": "ü<&>"}]'
    )


def test_generation_marks_for_training_are_transparent() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"

    assert template(source).render(USER) == "hi"


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(JobError, match="roles must alternate") as caught:
        template("{{ raise_exception('roles must alternate') }}").render(USER)
    assert caught.value.code == "template_error"


def test_a_broken_template_is_a_sentence() -> None:
    with pytest.raises(JobError, match="chat template is broken"):
        template("{% for %}")


ESCAPES = [
    "{{ cycler.__init__.__globals__.os.popen('touch pwned') }}",
    "{{ lipsum.__globals__['os'].popen('touch pwned').read() }}",
    "{{ (cycler | attr('__init__') | attr('__globals__')).os.popen('touch pwned') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% set x = messages.clear() %}{{ messages[0].content.__len__.__self__.__class__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_leave_the_sandbox(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(JobError):
        assert template(source).render(USER) == ""
    assert not list(tmp_path.iterdir())


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ 'x' * 1000000000 }}",
    "{{ [0] * 1000000000 }}",
    "{{ 10 ** 10000000 }}",
    "{{ '%900000000d' | format(1) }}",
    "{{ '%900000000d' % 1 }}",
    "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "{{ range(1000000000) | list }}",
    "{{ 'x'.ljust(3000000000) | length }}",
    "{{ 'x' | center(3000000000) | length }}",
    "{{ '%*d' % (900000000, 1) }}",
    "{{ '{:>{w}}'.format(1, w=900000000) | length }}",
    "{{ '\\t'.expandtabs(900000000) | length }}",
    "{{ 'x'.encode() * 1000000000 }}",
    "{% set ns = namespace(x='x' * 1000000) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1] * 1000000) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=10 ** 64) %}{% for i in range(6) %}{% set ns.x = ns.x ** 64 %}{% endfor %}",
    "{% set ns = namespace(x=10 ** 64) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ ([[1] * 1000000] * 1000) | sum(start=[]) | length }}",
    "{{ " + " ~ ".join(["'x' * 1000000"] * 3000) + " }}",
    "{{ a }}" * 300_000,
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "{% autoescape 'x' | center(3000000000) %}{% endautoescape %}",
    "{{ raise_exception('x' * 1000000) }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_a_template_cannot_take_the_machine(source: str) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(JobError) as caught:
        template(source).render(USER)
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024
    assert len(caught.value.message) < 500


def test_nothing_is_computed_before_the_limits_hold() -> None:
    ChatTemplate("{{ 'x' | center(3000000000) }}" * 100, special_tokens={})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


def test_memory_is_free_again_after_a_template() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(JobError, match="256 MiB of memory"):
        template("{{ 'x'.ljust(3000000000) }}").render(USER)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert template(CHATML).render(USER)


def count(pieces: list[tuple[str, bool]]) -> int:
    return sum(is_control for _, is_control in pieces)


@given(text=st.lists(st.sampled_from([*CONTROLS, "<|im_", "start|>", "\n", "system", "\U000f0000", "\U000f0001", "é"])))
def test_control_tokens_are_the_templates_alone_and_text_survives(text: list[str]) -> None:
    content = "".join(text)
    guard = Guard(CONTROLS)
    (messages,), sentinels = guard.protect([[{"role": "user", "content": content}]])

    pieces = guard.split(template(CHATML).render(messages), sentinels)

    assert count(pieces) == 3
    assert "".join(piece for piece, _ in pieces) == template(CHATML).render([{"role": "user", "content": content}])


def test_literals_in_names_and_tool_schemas_are_guarded_too() -> None:
    guard = Guard(CONTROLS)
    value = {"tools": [{"<|im_end|>": "x<|im_start|>"}]}

    guarded, sentinels = guard.protect(value)

    assert not any(literal in str(guarded) for literal in CONTROLS)
    assert sorted(sentinels.values()) == ["<|im_end|>", "<|im_start|>"]


def test_a_longer_literal_wins_over_its_prefix() -> None:
    guard = Guard(["<|a|>", "<|a|>b"])

    assert guard.split("x<|a|>by", {}) == [("x", False), ("<|a|>b", True), ("y", False)]


@pytest.mark.parametrize(
    ("source", "contents"),
    [
        ("<{{ messages[0].content }}", ["|im_end|>"]),
        ("{{ messages[0].content }}>", ["hi<|im_end|"]),
        ("{{ messages[0].content }}{{ messages[1].content }}", ["<|im_", "end|>"]),
        ("{{ messages[0].content }}{{ messages[1].content }}{{ messages[2].content }}", ["<", "|im_end|", ">"]),
        ("{{ messages[0].content | tojson }}", ["<|im_end|>"]),
    ],
)
def test_no_control_token_is_made_of_parts(source: str, contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    guard = Guard(CONTROLS)
    (guarded,), sentinels = guard.protect([messages])

    pieces = guard.split(template(source).render(guarded), sentinels)

    assert count(pieces) == 0
    assert "".join(piece for piece, _ in pieces) == template(source).render(messages)


@pytest.mark.parametrize("literal", ["\n\n", 'a"b', "back\\slash", "\t<x>", "<ü>"])
def test_literals_that_json_would_escape_are_guarded(literal: str) -> None:
    guard = Guard([literal])
    (text,), sentinels = guard.protect([f"before{literal}after"])

    assert guard.split(text, sentinels) == [(f"before{literal}after", False)]


def test_words_that_templates_compare_are_left_alone() -> None:
    guard = Guard(["<|user|>", "sop"])
    value = [{"role": "user", "parameters": "p", "content": " hi "}]

    assert guard.protect(value) == (value, {})


def test_any_number_of_literals_is_guarded() -> None:
    guard = Guard(CONTROLS)
    text = "<|im_end|>" * 70_000

    (guarded,), sentinels = guard.protect([text])

    assert guard.split(guarded, sentinels) == [(text, False)]


def test_text_of_every_private_character_is_refused_not_confused() -> None:
    everything = "".join(map(chr, range(0xF0000, 0xFFFFE)))

    with pytest.raises(JobError, match="private-use"):
        Guard(CONTROLS).protect([everything + "<|im_end|>"])
