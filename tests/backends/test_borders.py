"""Where checkpoints stand in a chat: a shared system message, an edited last turn and a next turn find one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backends.generation.borders import borders
from backends.generation.media import MediaTower
from backends.generation.tokenizer import Tokenizer
from backends.messages import ChatPrompt, TextPrompt
from backends.prompts.control import Control
from backends.prompts.fim import InfillMarks

MARKS = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<think>")
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "thinks": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "gemma": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "mistral": "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
}


class Letters:
    """A vocabulary of one token per letter and per pair of white space, so that a border may fall inside a token."""

    tower: MediaTower | None = None
    identity = "letters"
    n_vocab = 1 << 16
    bos: int | None = 1
    opening = 1

    def __init__(self, template: str) -> None:
        self._template = template

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        found, at = [], 0
        while at < len(text):
            n = 2 if text[at : at + 2] in ("\n\n", " A", " B", " N") else 1
            found.append(hash_of(text[at : at + n]))
            at += n
        return found

    def piece(self, token: int) -> bytes:
        return b""

    literal = piece

    def controls(self) -> list[Control]:
        return [Control(60000 + i, mark, strips_left=False, strips_right=False) for i, mark in enumerate(MARKS)]

    def ends(self) -> Any:
        return np.array([2], dtype=np.int32)

    def special_texts(self) -> dict[str, str]:
        return {}

    def chat_template(self, name: str | None = None) -> str | None:
        return None if name else self._template

    def infill_marks(self) -> InfillMarks | None:
        return None

    def close(self) -> None:
        pass


def hash_of(text: str) -> int:
    return sum(ord(letter) << (8 * i) for i, letter in enumerate(text)) % 59000 + 10


def alike(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM = said("system", "You are terse. " * 8)
CHATS = {
    "first turn": [SYSTEM, said("user", "What is this?")],
    "third turn": [
        SYSTEM,
        said("user", "Add."),
        said("assistant", "What?"),
        said("user", "One"),
        said("assistant", "Two"),
        said("user", "\nNew"),
    ],
    "no system": [said("user", "Hello")],
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_border_stands_where_others_part(template: str, chat: str) -> None:
    tokenizer = Tokenizer(Letters(TEMPLATES[template]))
    messages: list[dict[str, Any]] = list(CHATS[chat])

    def tokens(others: list[dict[str, Any]]) -> list[int]:
        return tokenizer.encode(ChatPrompt(others))[0]

    ours = tokens(messages)
    places = borders(tokenizer, ChatPrompt(messages), ours)

    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    others = {
        "who shares the system message": tokens([*messages[:first], said("user", "None said so")]),
        "who edits the last turn": tokens([*messages[:-1], said("user", "Now what?")]),
        "who goes on": tokens([*messages, said("assistant", "Blue"), said("user", "Why?")]),
    }
    assert list(places) == sorted(set(places))
    assert places[-1] < len(ours)
    for who, theirs in others.items():
        parted = alike(ours, theirs)
        best = max((at for at in places if at <= parted), default=0)
        assert parted - best <= 3, (who, places, parted)
    assert len(ours) - places[-1] <= 32, "who asks again computes little"


def test_text_ends_before_its_last_token() -> None:
    tokenizer = Tokenizer(Letters(TEMPLATES["chatml"]))
    assert borders(tokenizer, TextPrompt("abc"), [5, 6, 7]) == (2,)
    assert borders(tokenizer, TextPrompt("a"), [5]) == ()
