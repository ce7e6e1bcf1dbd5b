"""Conversations as rows: what is learnt stands behind the prompt that a server would generate it for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import demo
from backends.bnb.vocabulary import FolderVocabulary
from backends.generation.tokenizer import Tokenizer
from backends.messages import ChatPrompt, TextPrompt
from backends.training.conversation import conversation
from backends.training.encoding import Encoder, Row
from backends.training.examples import Completion, check
from backends.training.lines import ExampleError
from demo.evaluate import cases
from demo.toolbox import ADD, GET_WEATHER, call_text

pytestmark = pytest.mark.engine

ASK = {"role": "user", "content": "Weather in Paris?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "It is sunny in Paris."}
TEMPLATE_TOKENS = 128
"""As `server.tuning.recipe` has them."""
CALL_TEXT = call_text("get_weather", {"city": "Paris"})


class Vocabulary:
    """The demo's, with another template where one is given."""

    def __init__(self, template: str | None = None) -> None:
        source = AutoTokenizer.from_pretrained(demo.HF_PATH)
        source.chat_template = template or source.chat_template
        vocabulary = FolderVocabulary(source, n_vocab=len(source), ends={source.eos_token_id})
        self.tokenizer = Tokenizer(vocabulary)
        self.encoder = Encoder(self.tokenizer, vocabulary, eos=source.eos_token_id)

    def rows(self, *messages: dict[str, Any]) -> list[Row]:
        return self.encoder.rows(conversation({"messages": list(messages)}))

    def learnt(self, row: Row) -> str:
        return self.tokenizer.decode([t for t, learns in zip(row.tokens, row.learnt, strict=True) if learns])

    def prompt(self, *messages: dict[str, Any]) -> list[int]:
        plain = conversation({"messages": [*messages, ANSWER]}).messages[:-1]
        return self.tokenizer.encode(ChatPrompt(messages=plain)).tokens


@pytest.fixture(scope="module")
def of_demo() -> Vocabulary:
    return Vocabulary()


def test_calls_and_words_are_learnt_behind_an_empty_block_that_no_turn_holds(of_demo):
    call, answer = of_demo.rows(ASK, CALLS, RESULT, ANSWER)
    assert of_demo.learnt(call) == f"{CALL_TEXT}<|im_end|>"
    assert of_demo.learnt(answer) == f"{ANSWER['content']}<|im_end|>"
    for row, asked in ((call, (ASK,)), (answer, (ASK, CALLS, RESULT))):
        head = row.tokens[: row.learnt.index(True)]
        assert head == of_demo.prompt(*asked)
        assert of_demo.tokenizer.decode(head).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_every_case_of_the_demos_exam_can_be_taught(of_demo):
    for case in cases(heldout=False, n_per_family=2):
        said: dict[str, Any] = {"role": "assistant", "content": case.expected}
        if case.expected.startswith("<tool_call>"):
            call = json.loads(case.expected.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            said = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call}]}
        example = {"messages": [*case.messages, said], "tools": case.tools}
        assert of_demo.learnt(of_demo.encoder.rows(conversation(example))[-1]) == f"{case.expected}<|im_end|>"


@pytest.mark.parametrize(
    "example",
    [
        {"messages": [ASK, ANSWER], "tools": [GET_WEATHER, ADD] * 20},
        {"messages": [ASK, ANSWER] * 40},
        {"messages": [ASK, {"role": "assistant", "content": "\u5de8\u5927\u306a\u72ac" * 80}]},
        {"messages": [ASK, *[CALLS, RESULT] * 30, ANSWER]},
    ],
    ids=["tools", "turns", "signs", "calls"],
)
def test_no_example_has_more_tokens_than_the_bytes_that_were_counted(of_demo, example, tmp_path):
    """With those that are added for a template: a length that is left open fits every example."""
    (tmp_path / "file.jsonl").write_text(json.dumps(example))
    found = check(tmp_path / "file.jsonl")
    longest = max(len(row.tokens) for row in of_demo.encoder.rows(conversation(example)))
    assert longest <= found.longest_bytes + TEMPLATE_TOKENS


def test_answers_of_a_template_that_writes_no_block_are_one_row():
    plain = Vocabulary(re.sub(r"(?s){%- if not enable_thinking.*?endif -%}", "", source()))
    (row,) = plain.rows(ASK, CALLS, RESULT, ANSWER)
    assert plain.learnt(row) == f"{CALL_TEXT}<|im_end|>{ANSWER['content']}<|im_end|>"


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ({**ANSWER, "reasoning_content": "It was told so."}, "reasoning_content"),
        ({**ANSWER, "content": "<think>\nIt was told so.\n</think>\n\nSunny."}, "reasoning_content"),
    ],
)
def test_what_the_template_leaves_out_of_an_answer_is_told(of_demo, said, part):
    with pytest.raises(ExampleError, match=rf"messages\[1\]\.{part}: the chat template leaves out some of it"):
        of_demo.rows(ASK, said)


REASONS = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{% if one.reasoning_content %}<think>\n"
    "{{ one.reasoning_content }}\n</think>\n\n{% endif %}{{ one.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3 writes answers."""


def test_reasoning_within_a_content_is_learnt_as_the_model_writes_it():
    reasons = Vocabulary(REASONS)
    (apart,) = reasons.rows(ASK, {"role": "assistant", "content": "Sunny.", "reasoning_content": "It was told so."})
    (within,) = reasons.rows(ASK, {"role": "assistant", "content": "<think>\nIt was told so.\n</think>\n\nSunny."})
    assert within == apart
    assert reasons.learnt(within) == "<think>\nIt was told so.\n</think>\n\nSunny.<|im_end|>"
    for mark in ("<think>", "</think>"):
        (token,) = reasons.tokenizer.encode(TextPrompt(mark)).tokens[-1:]
        assert within.tokens.count(token) == 1
    (empty,) = reasons.rows(ASK, {"role": "assistant", "content": "<think>\n\n</think>\n\nSunny."})
    assert reasons.learnt(empty) == "Sunny.<|im_end|>"
    (later,) = reasons.rows(ASK, {"role": "assistant", "content": "It writes <think> before it answers."})
    assert reasons.learnt(later) == "It writes <think> before it answers.<|im_end|>"
    with pytest.raises(ExampleError, match=r"messages\[1\].content begins with <think> and has no </think>. hint"):
        reasons.rows(ASK, {"role": "assistant", "content": "<think>\nIt was"})


def test_calls_behind_a_prompt_that_no_turn_begins_with_are_refused():
    begun = Vocabulary(source().replace("'<think>\\n\\n</think>\\n\\n'", "'Well, '"))
    with pytest.raises(ExampleError, match=r"messages\[1\]: the chat template writes this answer otherwise"):
        begun.rows(ASK, CALLS, RESULT, ANSWER)
    assert begun.learnt(begun.rows(ASK, ANSWER)[0]) == f"{ANSWER['content']}<|im_end|>"


def test_a_completion_gets_no_space_that_only_a_text_begins_with():
    """As Llama 2 and Mistral tokenize."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((sign, -5.0) for sign in "\u2581abc")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, byte_fallback=False))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([tokenizers.AddedToken("</s>", special=True)])
    vocabulary = FolderVocabulary(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), n_vocab=6, ends={1}
    )
    encoder = Encoder(Tokenizer(vocabulary), vocabulary, eos=1)
    for completion in ("c", " c"):
        (row,) = encoder.rows(Completion("ab", completion))
        assert row.tokens == [*vocabulary.tokenize(f"ab{completion}", parse_special=True), 1]
        assert row.learnt == [False] * 3 + [True] * (len(row.tokens) - 3)


def source() -> str:
    return (demo.HF_PATH / "chat_template.jinja").read_text()
