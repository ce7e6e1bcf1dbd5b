"""A small vocabulary without a model, and random answers under a mask: what any model whatsoever could write."""

from __future__ import annotations

import functools
import json
import random
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.constraints.vocabulary import ConstraintVocabulary
from backends.formats.known import FORMATS
from backends.messages import Function

WORDS = [
    "the ",
    " city",
    "Par",
    "is",
    '": ',
    '", "',
    '"}',
    '{"',
    "}}",
    "</",
    "\n\n",
    "nam",
    "e",
    "ar",
    '":{"',
    "tr",
    "ue",
]


class AnyMask(Protocol):
    """What a grammar's mask and a whole answer's have in common."""

    def allowed(self) -> NDArray[np.bool_] | None: ...

    def accept(self, token: int) -> None: ...

    @property
    def ended(self) -> bool: ...


@functools.cache
def vocabulary() -> ConstraintVocabulary:
    """Every byte, some words, the marks of every format as tokens of their own, and two ends."""
    marks = sorted({mark for format_ in FORMATS for mark in format_.marks})
    pieces = [bytes([byte]) for byte in range(256)] + [text.encode() for text in [*WORDS, *marks]]
    pieces += [b"", b""]
    return ConstraintVocabulary(pieces=pieces, ends=[len(pieces) - 2, len(pieces) - 1], tokenize=list)


def function(tool: dict[str, Any]) -> Function:
    """A tool as a job has it."""
    own = tool["function"]
    return Function(name=own["name"], parameters=json.dumps(own.get("parameters", {})), param="tools[0]")


def accepts(mask: AnyMask, text: str) -> bool:
    """Whether the text may be written, byte by byte, and then end."""
    for byte in text.encode():
        allowed = mask.allowed()
        if allowed is not None and not allowed[byte]:
            return False
        mask.accept(byte)
    if mask.ended:
        return True
    allowed = mask.allowed()
    return allowed is None or bool(allowed[vocabulary().ends[0]])


def wander(mask: AnyMask, dice: random.Random, *, most: int = 600) -> str | None:
    """A random answer; the longer it gets, the more it likes to close what is open. None where it does not end."""
    words = vocabulary()
    written: list[bytes] = []
    for step in range(most):
        if mask.ended:
            break
        allowed = mask.allowed()
        assert allowed is not None
        choices: list[int] = np.flatnonzero(allowed).tolist()
        assert choices
        hasty = step > 40
        closing = [c for c in choices if words.pieces[c][:1] in b'"}]</)' or c in words.ends] if hasty else []
        token = int(dice.choice(closing if closing and dice.random() < 0.9 else choices))
        mask.accept(token)
        if token in words.ends:
            break
        written.append(words.pieces[token])
    else:
        return None
    return b"".join(written).decode("utf-8", "replace")
