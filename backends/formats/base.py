"""What a tool-call format is made of: how to recognise it, read it and force it.

Grammars are pieces of Lark in llguidance's dialect; `backends.constraints.grammars` puts them together.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from backends.formats.openings import NAME, SPACE, Openings, Pattern, firsts, regex
from backends.formats.pieces import Piece
from backends.formats.reading import CallReader, Notation
from backends.messages import Function

Json = dict[str, Any]
Conversation = tuple[list[Json], list[Json]]
"""Messages and tools in the plain form that templates take."""

PRETTY: Json = {
    "whitespace_pattern": r"\n([ ]{0,40}|\t{0,12})",
    "key_separator": ":[ ]?",
    "item_separator": ",[ ]?",
}
"""White space in JSON as writers put it: a space behind colons and commas, or a new line with its indentation. Where
lines may end is `backends.constraints.json_lines`'."""
COMPACT: Json = {"whitespace_flexible": False, "key_separator": ":", "item_separator": ","}
"""None."""


INTEGER = r"-?(0|[1-9][0-9]{0,19})"
"""A regular expression for notations of their own: as many digits as 64 bits need. In JSON
`backends.constraints.json_lines` ends numbers."""


class PieceReader(Protocol):
    """Sorts one choice's text."""

    @property
    def n_calls(self) -> int:
        """Calls announced so far."""
        ...

    @property
    def is_cut(self) -> bool:
        """The text has ended inside a call."""
        ...

    @property
    def n_passed(self) -> int:
        """Characters of what was fed in front of which no further content begins."""
        ...

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        ...

    def flush(self, *, cut: bool) -> list[Piece]:
        """The rest, at the end of the text; `cut`: not its writer has ended it, so that half a call is one."""
        ...


@dataclass(frozen=True)
class Rules:
    """A format's part of a grammar: what follows the opening of a call of each function, in Lark.

    `GAP` is a little white space, `BLANK` is one or none.
    """

    bodies: Sequence[str]
    """One per function: its arguments, and what closes them."""
    after: str = ""
    """What closes a call and those that follow it: `another` is one of those."""
    another: Pattern | None = None
    """How it is opened."""
    lines: Sequence[str] = ()
    """The rules that they refer to."""
    turned: str | None = None
    """What follows where the arguments come first."""
    once: bool = False
    """A call ends the answer."""
    before: str = ""
    """What may stand before a call that is required."""
    among_json: str | None = None
    """Calls without a mark, where the answer may also be JSON of another form."""


def unchanged(messages: list[Json], tools: list[Json]) -> Conversation:
    """Templates that take OpenAI's messages as they are."""
    return messages, tools


def new_call_id() -> str:
    """An id that can not be guessed."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Format:
    """How one family of models writes tool calls."""

    name: str
    fits: Callable[[str], bool]
    """Whether a chat template, by its source, speaks it."""
    openings: Openings
    """What is certainly the beginning of a call."""
    rules: Callable[[Sequence[Function], bool], Rules]
    """The grammar of calls of these functions; the flag says whether several may follow each other."""
    notation: Notation | None = None
    reader: Callable[[Callable[[], str], Sequence[Json] | None, bool, bool], PieceReader] | None = None
    """Makes a reader of what `read` takes, where no notation can."""
    answer_marks: tuple[str, ...] = ()
    """What parts of an answer begin with: where one stands in open reasoning, that has ended."""
    answer_openings: tuple[str, ...] = ()
    """The same, whole: nothing more is needed to be sure."""
    marks: tuple[str, ...] = ()
    """Texts that are control tokens of such vocabularies and yet belong to the answer."""
    adapt: Callable[[list[Json], list[Json]], Conversation] = unchanged
    """Messages and tools as this family's templates want them."""
    new_id: Callable[[], str] = new_call_id
    writes_json: bool = True
    """All that stands in brackets in a call is JSON."""
    text_opening: str = ""
    """Lark for what stands before an answer that is text."""
    reasons: bool = False
    """Its reader takes reasoning apart as well."""

    def ends_reasoning(self, *, calls: bool) -> tuple[str, ...]:
        """Marks of the answer that end open reasoning without its own mark; with `calls` those of a call, too."""
        return tuple(dict.fromkeys((*self.answer_marks, *(firsts(self.openings.marked) if calls else ()))))

    def read(
        self,
        tools: Sequence[Json] | None = None,
        *,
        new_id: Callable[[], str] | None = None,
        closing: str = "",
        alone: bool = False,
        opened: bool = False,
    ) -> PieceReader:
        """A reader for one choice: calls of these tools alone are calls, all other text is content.

        With `closing` for calls within a block of reasoning that this mark closes; with `alone` a text that does not
        begin with a call holds none; with `opened` a block of reasoning is open where the reader knows of such. Without
        `tools` it takes any name.
        """
        make_id = self.new_id if new_id is None else new_id
        if self.reader is not None:
            return self.reader(make_id, tools, alone, opened)
        assert self.notation is not None
        notation = self.notation.within(closing) if closing else self.notation
        openings = self.openings.within() if closing else self.openings
        return CallReader(notation, openings, new_id=make_id, tools=tools, alone=alone)


def quoted(text: str) -> str:
    """A literal in Lark."""
    return json.dumps(text, ensure_ascii=False)


_GUIDED, _COMPACTLY = (f'"x-guidance": {json.dumps(options)}}}' for options in (PRETTY, COMPACT))


def inline(schema: Any) -> str:
    """A JSON schema in Lark, with bounded white space."""
    return "%json " + json.dumps({**schema, "x-guidance": PRETTY}, ensure_ascii=False)


def compact(lark: str) -> str:
    """The same grammar without white space in its JSON; no text of a client's holds unescaped quotes."""
    return lark.replace(_GUIDED, _COMPACTLY)


_OPEN_ENDED = {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}


def parameters(function: Function) -> Json:
    """The schema of a function's arguments: an object, and without unknown properties where it names its own.

    What it requires and does not describe may be anything.
    """
    schema: Json = json.loads(function.parameters) or {}
    schema = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
    if not _OPEN_ENDED & schema.keys():
        described = schema.get("properties") or {}
        undescribed: Json = {name: {} for name in schema.get("required") or [] if name not in described}
        if undescribed:
            schema = {**schema, "properties": {**described, **undescribed}}
        schema = {**schema, "additionalProperties": False}
    return {**schema, "type": "object"}


def takes_others(schema: Json) -> bool:
    """Arguments of this schema, as `parameters` has it, may hold more than the properties that it names at its top."""
    return bool({key for key in _OPEN_ENDED & schema.keys() if schema[key] is not False})


def named_objects(functions: Sequence[Function], *, arguments: str = "arguments") -> Json:
    """The schema of `{"name": ..., "arguments": {...}}` for any of the functions, their references moved along."""
    schemas = [parameters(function) for function in functions]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function.name}, arguments: {"$ref": f"#/$defs/f{i}"}},
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for i, function in enumerate(functions)
    ]
    return {"$defs": {f"f{i}": _moved(schema, f"#/$defs/f{i}") for i, schema in enumerate(schemas)}, "anyOf": calls}


def _moved(schema: Any, root: str) -> Any:
    """The schema as it reads with its root at `root`."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {
        key: value if key in ("const", "enum", "default", "examples") else _moved(value, root)
        for key, value in schema.items()
    }
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


_NAMED = (SPACE, ",", SPACE, '"name"', SPACE, ":", SPACE, '"', NAME, '"')


def arguments_of(functions: Sequence[Function]) -> list[str]:
    """A line for each function: the rule `args0`, `args1`, ... is the JSON of its arguments."""
    return [f"args{i}: BLANK {inline(parameters(function))}" for i, function in enumerate(functions)]


def object_rules(functions: Sequence[Function], after: str, another: Pattern | None = None) -> Rules:
    """Calls that are objects with a name and arguments."""
    bodies = [f'args{i} GAP "}}"' for i in range(len(functions))]
    return Rules(bodies=bodies, after=after, another=another, lines=arguments_of(functions))


def turned(functions: Sequence[Function]) -> tuple[str, list[str]]:
    """What follows the opening of such an object whose arguments come first, and the lines that it refers to."""
    either = " | ".join(f"args{i} turned{i}" for i in range(len(functions)))
    return f'({either}) GAP "}}"', [f"turned{i}: /{regex(_NAMED, f.name)}/" for i, f in enumerate(functions)]
