"""Llama 3.x: `{"name": ..., "parameters": {...}}` as the whole answer, or behind `<|python_tag|>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from backends.formats.base import Format, Rules, inline, named_objects, object_rules
from backends.formats.openings import OBJECT, SPACE, Openings, maybe
from backends.formats.reading import Notation
from backends.messages import Function

TAG = "<|python_tag|>"
_OBJECT = ("{", SPACE, maybe('"type"', SPACE, ":", SPACE, '"function"', SPACE, ",", SPACE), *OBJECT[2:])
_MORE = (SPACE, ";", SPACE, *_OBJECT)


def rules(functions: Sequence[Function], parallel: bool) -> Rules:
    """Objects parted by semicolons."""
    made = object_rules(functions, "another* next?", _MORE) if parallel else object_rules(functions, "")
    # Other JSON may begin with the same brace, and a lexer does not go back.
    return replace(made, among_json=inline(named_objects(functions, arguments="parameters")))


FORMAT = Format(
    name="llama",
    fits=lambda template: "parameters" in template and ("<|python_tag|>" in template or "ipython" in template),
    openings=Openings(marked=(TAG, SPACE, *_OBJECT), bare=(SPACE, *_OBJECT), more=_MORE, names_alone=False),
    rules=rules,
    notation=Notation(),
    marks=(TAG,),
)
