"""The last message left open: cut where its text ends, or refused where the template has changed it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import demo
from backends.engine import JobError
from backends.prompts.chat_template import ChatTemplate
from backends.prompts.open_turn import OpenTurn

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TRIMMED = CHATML.replace("m.content", "m.content | trim")
LAST_WORD = CHATML.replace("m.content", "m.content.split(' ')[-1]")
TWICE = CHATML.replace("m.content", "m.content ~ m.content")
WITHOUT_ASSISTANTS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
USER = {"role": "user", "content": "hi"}


def opened(source: str, text: Any, **fields: Any) -> str:
    turn = OpenTurn([USER, {"role": "assistant", "content": text, **fields}])
    template = ChatTemplate(source, special_tokens={})
    return turn.cut(template.render(turn.messages, add_generation_prompt=False))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_prompt_ends_with_the_text(text: str) -> None:
    assert opened(CHATML, text) == f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{text}"


@pytest.mark.parametrize("text", ["i", "", "a b ", "\n  {", "\U00100000x"])
def test_a_template_that_trims_leaves_the_end_as_it_is(text: str) -> None:
    assert opened(TRIMMED, text).endswith(f"assistant\n{text.lstrip()}")


@pytest.mark.parametrize("source", [LAST_WORD, TWICE, WITHOUT_ASSISTANTS])
def test_a_template_that_changes_the_text_is_refused(source: str) -> None:
    with pytest.raises(JobError, match="does not write its text as it is") as refused:
        opened(source, "It is")
    assert (refused.value.code, refused.value.param) == ("invalid_value", "prompt")


@pytest.mark.parametrize("fields", [{"tool_calls": [{}]}, {"role": "user"}])
def test_only_an_assistants_text_can_be_left_open(fields: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="only an assistant's text"):
        opened(CHATML, "It is", **fields)
    with pytest.raises(JobError, match="only an assistant's text"):
        OpenTurn([])


@pytest.mark.parametrize("text", ["The capital of France is", "1, 2,", "i"])
def test_it_is_cut_where_transformers_cuts(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.HF_PATH)
    turns = [USER, {"role": "assistant", "content": "x"}, USER, {"role": "assistant", "content": text}]
    theirs = tokenizer.apply_chat_template(turns, continue_final_message=True, tokenize=False)

    turn = OpenTurn(turns)
    ours = ChatTemplate(tokenizer.chat_template, special_tokens={}).render(turn.messages, add_generation_prompt=False)

    assert turn.cut(ours) == theirs


@pytest.mark.parametrize(
    ("text", "inside"), [("", False), ("yes", False), ("<think>\nwell", True), ("<think>a</think> so", False)]
)
def test_it_may_end_inside_of_reasoning(text: str, inside: bool) -> None:
    turn = OpenTurn([{"role": "user", "content": "<think>"}, {"role": "assistant", "content": text}])
    assert turn.reasons(("<think>\n", "</think>")) is inside
