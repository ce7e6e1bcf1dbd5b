"""Llama 3.x: `{"name": ..., "parameters": {...}}` as the whole answer, or behind `<|python_tag|>`."""

from __future__ import annotations

from collections.abc import Sequence

from backends.formats.base import Format, Rules, inline, named_objects
from backends.formats.reading import Notation
from backends.messages import Function

TAG = "<|python_tag|>"


def rules(functions: Sequence[Function], parallel: bool) -> Rules:
    """Objects parted by semicolons. Text that opens with a brace is a call, so no other text may."""
    more = '(GAP ";" GAP object)*' if parallel else ""
    objects = inline(named_objects(functions, arguments="parameters"))
    # space and tag are one lexeme, because both may begin a text, too, and a lexer does not go back
    tagged = r"TAGGED: /(\r?\n){0,2}[ ]{0,2}<\|python_tag\|>/"
    calls = f"calls: (TAGGED | GAP) GAP object {more} GAP\nobject: {objects}\n{tagged}\n"
    return Rules(calls=calls, plain=r"(\s*([^{\s<]|<[^|])(?s:.*))?")


FORMAT = Format(
    name="llama",
    fits=lambda template: "parameters" in template and ("<|python_tag|>" in template or "ipython" in template),
    rules=rules,
    notation=Notation(begins=(TAG,), gaps=(";",), many=True, bare=True),
    marks=(TAG,),
)
