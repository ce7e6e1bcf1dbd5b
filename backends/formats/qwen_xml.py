"""Qwen3-Coder and its heirs: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.

The first mark is often left out. A value is plain text where the schema says string, and JSON otherwise.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Any

import jiter

from backends.formats.base import INTEGER, Format, Json, Rules, inline, parameters, quoted, takes_others
from backends.formats.openings import NAME, SPACE, Openings, maybe
from backends.formats.pieces import first_of, held_back
from backends.formats.reading import Notation
from backends.messages import Function

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_NUMBERS = {"integer": INTEGER, "number": rf"{INTEGER}(\.[0-9]{{1,20}})?([eE][+-]?[0-9]{{1,3}})?"}
_ABOUT = {"type", "title", "description", "default", "examples"}
"""Words of a schema that bound nothing."""
_WORDS_ENDS = (f"\n{_PARAMETER_END}", _PARAMETER_END)


def rules(functions: Sequence[Function], _parallel: bool) -> Rules:
    """Parameters in the order of the schema, and behind them those that it does not name, where it allows such."""
    lines, bodies = ["text[lazy]: /(?s:.*)<\\/parameter>/"], []
    lines.append(f"other: {quoted(_PARAMETER)} /[^<>\\r\\n]{{1,256}}>\\n/ text {quoted(chr(10))}")
    for i, function in enumerate(functions):
        schema = parameters(function)
        required = schema.get("required") or []
        parts = []
        for j, (key, item) in enumerate((schema.get("properties") or {}).items()):
            opening = quoted(f"{_PARAMETER}{key}>\n")
            value = f"f{i}p{j}"
            lines.append(f"{value}: {opening} {_value(item, schema)} {quoted(chr(10))}")
            parts.append(value if key in required else f"{value}?")
        if takes_others(schema):
            parts.append("other*")
        bodies.append(f"{quoted(chr(10))} {' '.join(parts)} {quoted(_FUNCTION_END)} GAP {quoted(CLOSE)}")
    return Rules(bodies=bodies, lines=lines)


def _value(schema: Any, root: Json) -> str:
    if isinstance(schema, dict) and _is_text(schema):
        if isinstance(choices := schema.get("enum"), list):
            return "(" + " | ".join(quoted(f"{choice}\n{_PARAMETER_END}") for choice in choices) + ")"
        return "text"
    if isinstance(schema, dict) and schema.keys() <= _ABOUT and (number := _NUMBERS.get(str(schema.get("type")))):
        return f"/{number}/ {quoted(chr(10) + _PARAMETER_END)}"
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    value = {**definitions, **schema} if isinstance(schema, dict) else {}
    return f"{inline(value)} {quoted(chr(10) + _PARAMETER_END)}"


def _is_text(schema: Json) -> bool:
    """A value of this schema is written without quotes."""
    if "type" in schema:
        return bool(schema["type"] == "string")
    choices = schema.get("enum")
    return isinstance(choices, list) and bool(choices) and all(isinstance(choice, str) for choice in choices)


class _State(enum.Enum):
    """`FUNCTION -> VALUE | WORDS -> FUNCTION -> ...`."""

    FUNCTION = enum.auto()
    VALUE = enum.auto()
    WORDS = enum.auto()


class XmlArguments:
    """Parameters to JSON, as they come; whether a value is text or JSON is the function's schema's to say."""

    def __init__(self, properties: Json) -> None:
        self._properties = properties
        self._state = _State.FUNCTION
        self._held = ""
        self._out: list[str] = []
        self._n_parameters = -1
        """-1: not even the brace is written."""
        self._begun = False
        """Some of a text was read, so a line end is part of it."""
        self._ended = False

    def feed(self, text: str) -> tuple[str, int]:
        """See `ArgumentsReader`."""
        self._held += text
        if self._n_parameters < 0:
            self._out, self._n_parameters = ["{"], 0
        moves = {_State.FUNCTION: self._function, _State.VALUE: self._value, _State.WORDS: self._words}
        while not self._ended and moves[self._state]():
            pass
        out, self._out = "".join(self._out), []
        return out, len(text) - len(self._held) if self._ended else -1

    def _function(self) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith(_PARAMETER):
            key, end, rest = stripped[len(_PARAMETER) :].partition(">")
            if not end:
                return False
            self._held = rest
            self._open_value(key.strip())
            return True
        if stripped.startswith(_FUNCTION_END):
            self._held = stripped[len(_FUNCTION_END) :]
            self._out.append("}")
            self._ended = True
            return False
        if _PARAMETER.startswith(stripped) or _FUNCTION_END.startswith(stripped):
            return False
        self._held = stripped[1:]  # nothing else has a meaning here
        return True

    def _open_value(self, key: str) -> None:
        schema = self._properties.get(key, {})
        is_text = isinstance(schema, dict) and _is_text(schema)
        comma = ", " if self._n_parameters else ""
        self._n_parameters += 1
        quote = '"' if is_text else ""
        self._out.append(f"{comma}{json.dumps(key, ensure_ascii=False)}: {quote}")
        self._state, self._begun = (_State.WORDS if is_text else _State.VALUE), False

    def _value(self) -> bool:
        """JSON, taken when it is whole; what is none is a text after all."""
        end = self._held.find(_PARAMETER_END)
        if end < 0:
            return False
        value = self._held[:end].strip()
        try:
            jiter.from_json(value.encode(), allow_inf_nan=False)
        except ValueError:
            value = json.dumps(value, ensure_ascii=False)
        self._out.append(value)
        self._held = self._held[end + len(_PARAMETER_END) :]
        self._state = _State.FUNCTION
        return True

    def _words(self) -> bool:
        """A text as it comes; the line ends beside its tags belong to them."""
        if not self._begun:
            if not self._held:
                return False
            self._held, self._begun = self._held.removeprefix("\n"), True
        at, mark = first_of(self._held, _WORDS_ENDS)
        cut = at if at >= 0 else len(self._held) - held_back(self._held, *_WORDS_ENDS)
        if cut:
            self._out.append(json.dumps(self._held[:cut], ensure_ascii=False)[1:-1])
        self._held = self._held[cut + len(mark) :]
        if at >= 0:
            self._out.append('"')
            self._state = _State.FUNCTION
        return at >= 0


FORMAT = Format(
    name="qwen-xml",
    fits=lambda template: _FUNCTION in template and _PARAMETER in template,
    openings=Openings(marked=(maybe(OPEN, SPACE), _FUNCTION, NAME, ">")),
    rules=rules,
    notation=Notation(arguments=XmlArguments, gaps=(CLOSE,), enclosed=False),
    writes_json=False,
    marks=(OPEN, CLOSE),
)
