"""What a grammar holds for a call the reader does, and nothing else: texts made of calls, their parts and noise."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest

from backends.constraints.guides import Guide, Guides
from backends.constraints.vocabulary import ConstraintVocabulary
from backends.formats.base import Format
from backends.formats.known import FORMATS
from backends.formats.pieces import Piece, Reasoning
from backends.formats.splitter import splitter
from backends.formats.thinking import Thinking
from backends.messages import ChatPrompt, Generate, JsonSchema, ToolCalls
from tests.formats.test_grammars import OFFERED
from tests.formats.test_mentions import calls, content, one_call
from tests.formats.walks import function, vocabulary

PARAMETERS = {tool["function"]["name"]: tool["function"].get("parameters", {"maxProperties": 0}) for tool in OFFERED}
ACROSS = [
    '": {"',
    ": {",
    '":{',
    'get_weather"',
    '<tool_call>{"',
    '":',
    '": {x',
    'ments":',
    '": x',
    "</think>x",
    "<think>",
]
"""Tokens in which one thing ends and another begins."""
N_WALKS = 8


def tokens() -> ConstraintVocabulary:
    plain = vocabulary()
    pieces = [*plain.pieces[:-2], *(text.encode() for text in ACROSS), b"", b""]
    return ConstraintVocabulary(pieces=pieces, ends=[len(pieces) - 2, len(pieces) - 1], tokenize=list)


VOCABULARY = tokens()
LONGEST_FIRST = sorted(
    ((piece, token) for token, piece in enumerate(VOCABULARY.pieces) if piece), key=lambda x: -len(x[0])
)


def script(format_: Format, marks: tuple[str, str], dice: random.Random) -> bytes:
    """What the model would like to say."""
    call = one_call(format_.name, dice.randrange(4))
    parts = [
        call,
        call,
        call[: dice.randrange(len(call))],
        dice.choice(format_.marks),
        call.replace("get_weather", "no"),
    ]
    return "".join(dice.choice([*parts, " so ", "\n", "hm", *marks[1:], marks[1]]) for _ in range(5)).encode()


def say(guide: Guide, wish: bytes, dice: random.Random) -> tuple[str, bool]:
    """The text that comes of a wish under a guide, with some noise, and whether it came to an end."""
    written, at, ends = b"", 0, VOCABULARY.ends
    for _ in range(700):
        allowed = guide.allowed()
        assert allowed is None or allowed.any(), written
        wanted = [t for piece, t in LONGEST_FIRST if wish.startswith(piece, at) and (allowed is None or allowed[t])]
        if wanted and dice.random() < 0.98:
            token = wanted[0] if dice.random() < 0.7 else wanted[-1]
        elif at >= len(wish) and (allowed is None or allowed[ends[0]]):
            token = ends[0]
        else:
            choices = list(range(len(VOCABULARY.pieces))) if allowed is None else np.flatnonzero(allowed).tolist()
            closing = [t for t in choices if VOCABULARY.pieces[t][:1] in b'"}]</)' or t in ends]
            token = dice.choice(closing if closing and dice.random() < 0.8 else choices)
        token = guide.instead(token)
        piece = VOCABULARY.pieces[token]
        at += len(piece) if wish.startswith(piece, at) else 0
        guide.accept(token)
        if token in ends or guide.ended:
            return (written + piece).decode("utf-8", "replace"), True
        written += piece
    return written.decode("utf-8", "replace"), False


@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_a_call_is_one_to_both_and_valid_wherever_it_stands(format_: Format) -> None:
    marks = ("<|channel|>analysis<|message|>", "<|end|>") if format_.reasons else ("<think>", "</think>")
    guides = Guides(
        vocabulary=lambda: VOCABULARY,
        format_=format_,
        piece=lambda token: VOCABULARY.pieces[token],
        ends=VOCABULARY.ends,
        marks=marks,
    )
    n_calls = 0
    for seed in range(N_WALKS):
        dice = random.Random(f"{format_.name}{seed}")
        form = JsonSchema('{"type": "object"}') if seed % 3 == 1 else None
        functions = [function(tool) for tool in OFFERED]
        only = ToolCalls(functions, required=seed % 3 == 0, parallel=seed % 4 != 1, content=form)
        thinking = dice.choice([Thinking.OPEN, Thinking.MAYBE, Thinking.NEVER])
        job = Generate(
            id="j", prompt=ChatPrompt([], tools=OFFERED), constraint=only, reasoning_budget=[None, 30][seed % 2]
        )
        plan = guides.plan(job, thinking)
        assert plan is not None
        guide = plan.start()
        text, ended = say(guide, script(format_, marks, dice), dice)

        def read(chunks: list[str], *, opened: bool, only: ToolCalls = only, cut: bool = not ended) -> list[Piece]:
            made = splitter(format_, marks, opened=opened, tools=OFFERED, only=only, new_id=lambda: "id")
            assert made is not None
            return [piece for chunk in chunks for piece in made.feed(chunk)] + made.flush(cut=cut)

        pieces, same = (read(chunks, opened=thinking is Thinking.OPEN) for chunks in ([text], list(text)))
        assert told(pieces) == told(same), text
        if ended:
            assert bool(calls(pieces)) is guide.called, text
            assert calls(pieces) or not only.required, text
            assert calls(pieces) or form is None or isinstance(json.loads(content(pieces)), dict), text
            for name, arguments in calls(pieces):
                jsonschema.validate(json.loads(arguments), PARAMETERS[name])
            n_calls += len(calls(pieces))
    assert n_calls


def told(pieces: list[Piece]) -> tuple[list[tuple[str, str]], str, str]:
    return calls(pieces), content(pieces), "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
