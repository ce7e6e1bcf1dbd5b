"""Qwen3-Coder and its heirs: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.

A value is plain text where the schema says string, and JSON otherwise.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Sequence
from typing import Any

import jiter

from backends.formats.base import Format, Json, Rules, inline, parameters, quoted
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, first_of, held_back
from backends.messages import Function

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_WORDS_ENDS = (f"\n{_PARAMETER_END}", _PARAMETER_END)


def rules(functions: Sequence[Function], parallel: bool) -> Rules:
    """Parameters in the order of the schema."""
    lines = []
    for i, function in enumerate(functions):
        schema = parameters(function)
        required = schema.get("required") or []
        parts = []
        for j, (key, item) in enumerate((schema.get("properties") or {}).items()):
            opening = quoted(f"{_PARAMETER}{key}>\n")
            value = f"f{i}p{j}"
            lines.append(f"{value}: {opening} {_value(item, schema)} {quoted(chr(10))}")
            parts.append(value if key in required else f"{value}?")
        head = quoted(f"{_FUNCTION}{function.name}>\n")
        lines.append(f"call{i}: {head} {' '.join(parts)} {quoted(_FUNCTION_END)}")
    either = " | ".join(f"call{i}" for i in range(len(functions)))
    more = f"(GAP {quoted(OPEN)} call)*" if parallel else ""
    lark = [
        f"calls: call {more} GAP",
        f"call: GAP ({either}) GAP {quoted(CLOSE)}",
        "text[lazy]: /(?s:.*)<\\/parameter>/",
        *lines,
        "",
    ]
    return Rules(trigger=OPEN, calls="\n".join(lark))


def _value(schema: Any, root: Json) -> str:
    if isinstance(schema, dict) and _is_text(schema):
        if isinstance(choices := schema.get("enum"), list):
            return "(" + " | ".join(quoted(f"{choice}\n{_PARAMETER_END}") for choice in choices) + ")"
        return "text"
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
    """`TEXT -> CALL -> FUNCTION -> VALUE | WORDS -> FUNCTION -> CALL -> TEXT`."""

    TEXT = enum.auto()
    CALL = enum.auto()
    FUNCTION = enum.auto()
    VALUE = enum.auto()
    WORDS = enum.auto()


class XmlReader:
    """One choice's text; whether a value is text or JSON is the offered functions' schemas' to say."""

    def __init__(self, new_id: Callable[[], str], tools: Sequence[Json], closing: str = "") -> None:
        self._new_id = new_id
        self._closing = closing
        functions = [tool.get("function", tool) for tool in tools]
        self._properties = {f["name"]: (f.get("parameters") or {}).get("properties") or {} for f in functions}
        self._state = _State.TEXT
        self._n_fed = 0
        self._held = ""
        self._gap = ""
        self._name = ""
        self._begun = False
        """Some of a text was read, so a line end is part of it."""
        self._n_parameters = 0
        self._after_call = False
        self.n_calls = 0
        self.is_cut = False
        """See `Reader`."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        self._n_fed += len(text)
        self._held += text
        pieces: list[Piece] = []
        moves = {
            _State.TEXT: self._text,
            _State.CALL: self._call,
            _State.FUNCTION: self._function,
            _State.VALUE: self._value,
            _State.WORDS: self._words,
        }
        while moves[self._state](pieces):
            pass
        return pieces

    def flush(self, *, cut: bool) -> list[Piece]:
        """See `Reader`; a name that is cut in two is none."""
        text, self._held = self._held, ""
        if self._state is _State.TEXT:
            return [self._content(text)] if text and not (self._after_call and not text.strip()) else []
        if self._state is _State.CALL:
            self.is_cut = cut and (not self._after_call or text.lstrip().startswith(_FUNCTION))
            return [] if self._after_call or cut else [self._content(self._gap + OPEN + text)]
        self.is_cut = True
        return []

    @property
    def n_passed(self) -> int:
        """See `Reader`."""
        begun = len(self._gap + OPEN) if self._state is _State.CALL and not self._after_call else 0
        return self._n_fed - len(self._held) - begun

    def _content(self, text: str) -> Content:
        """What was written right before what is held now."""
        return Content(text, self._n_fed - len(self._held) - len(text))

    def _text(self, pieces: list[Piece]) -> bool:
        if self._after_call and self._closing:
            stripped = self._held.lstrip()
            if self._closing.startswith(stripped):
                return False
            self._held = stripped.removeprefix(self._closing)
        at = self._held.find(OPEN)
        cut = at if at >= 0 else len(self._held) - held_back(self._held, OPEN)
        certain = self._held[:cut].rstrip()
        self._held = self._held[len(certain) :]
        if certain:
            pieces.append(self._content(certain.lstrip() if self._after_call else certain))
            self._after_call = False
        if at < 0:
            return False
        self._gap, _, self._held = self._held.partition(OPEN)
        self._state = _State.CALL
        self._after_call = False
        return True

    def _call(self, pieces: list[Piece]) -> bool:
        """Behind the opening tag, or behind a function's end."""
        stripped = self._held.lstrip()
        expected = CLOSE if self._after_call else _FUNCTION
        if stripped.startswith(CLOSE) and self._after_call:
            self._held = stripped[len(CLOSE) :]
            self._state = _State.TEXT
            return True
        if stripped.startswith(_FUNCTION):
            name, end, rest = stripped[len(_FUNCTION) :].partition(">")
            if not end:
                return False
            self._begin(pieces, name.strip())
            self._held = rest
            return True
        if expected.startswith(stripped) or _FUNCTION.startswith(stripped):
            return False
        if not self._after_call:
            pieces.append(self._content(self._gap + OPEN))
        self._state = _State.TEXT
        return True

    def _begin(self, pieces: list[Piece], name: str) -> None:
        pieces += [CallBegins(self.n_calls, self._new_id(), name), CallArguments(self.n_calls, "{")]
        self.n_calls += 1
        self._name, self._n_parameters = name, 0
        self._state = _State.FUNCTION

    def _function(self, pieces: list[Piece]) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith(_PARAMETER):
            key, end, rest = stripped[len(_PARAMETER) :].partition(">")
            if not end:
                return False
            self._held = rest
            self._open_value(pieces, key.strip())
            return True
        if stripped.startswith(_FUNCTION_END):
            self._held = stripped[len(_FUNCTION_END) :]
            pieces.append(CallArguments(self.n_calls - 1, "}"))
            self._state, self._after_call = _State.CALL, True
            return True
        if _PARAMETER.startswith(stripped) or _FUNCTION_END.startswith(stripped):
            return False
        self._held = stripped[1:]  # nothing else has a meaning here
        return True

    def _open_value(self, pieces: list[Piece], key: str) -> None:
        schema = self._properties.get(self._name, {}).get(key, {})
        is_text = isinstance(schema, dict) and _is_text(schema)
        comma = ", " if self._n_parameters else ""
        self._n_parameters += 1
        quote = '"' if is_text else ""
        self._write(pieces, f"{comma}{json.dumps(key, ensure_ascii=False)}: {quote}")
        self._state, self._begun = (_State.WORDS if is_text else _State.VALUE), False

    def _value(self, pieces: list[Piece]) -> bool:
        """JSON, taken when it is whole; what is none is a text after all."""
        end = self._held.find(_PARAMETER_END)
        if end < 0:
            return False
        value = self._held[:end].strip()
        try:
            jiter.from_json(value.encode(), allow_inf_nan=False)
        except ValueError:
            value = json.dumps(value, ensure_ascii=False)
        self._write(pieces, value)
        self._held = self._held[end + len(_PARAMETER_END) :]
        self._state = _State.FUNCTION
        return True

    def _words(self, pieces: list[Piece]) -> bool:
        """A text as it comes; the line ends beside its tags belong to them."""
        if not self._begun:
            if not self._held:
                return False
            self._held, self._begun = self._held.removeprefix("\n"), True
        at, mark = first_of(self._held, _WORDS_ENDS)
        cut = at if at >= 0 else len(self._held) - held_back(self._held, *_WORDS_ENDS)
        if cut:
            self._write(pieces, json.dumps(self._held[:cut], ensure_ascii=False)[1:-1])
        self._held = self._held[cut + len(mark) :]
        if at >= 0:
            self._write(pieces, '"')
            self._state = _State.FUNCTION
        return at >= 0

    def _write(self, pieces: list[Piece], text: str) -> None:
        pieces.append(CallArguments(self.n_calls - 1, text))


FORMAT = Format(
    name="qwen-xml",
    fits=lambda template: _FUNCTION in template and _PARAMETER in template,
    rules=rules,
    reader=XmlReader,
    call_marks=(OPEN,),
    writes_json=False,
    marks=(OPEN, CLOSE),
)
