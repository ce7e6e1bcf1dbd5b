"""What becomes of every field that the SDKs' types hold within a body, found by sending it to the parsers.

A field is read, or refused, or named in the header of what had no effect, or left out together with its whole object,
which is named by its kind; or it passes in silence.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typing_extensions
from pydantic import BaseModel

from server.errors import ApiError
from server.schemas.anthropic import parse_count
from server.schemas.chat import parse_meaning
from server.schemas.completions import parse_completion
from server.schemas.responses import parse_compact, parse_response
from tests.schemas.requests import TYPES


class Fate(enum.Enum):
    """What is done with a field."""

    READ = "read"
    REFUSED = "refused"
    LEFT_OUT = "left out with its object, which is named by its kind"
    NAMED = "named in the header"
    SILENT = "passes in silence"


@dataclass(frozen=True)
class Parsed:
    """A request that was not refused."""

    ignored: list[str]
    trees: tuple[BaseModel, ...]


def _response(data: dict[str, Any]) -> Parsed:
    asked = parse_response(data).complete(before=None, items={})
    return Parsed(asked.ignored, (asked.own, asked.chat))


def _compact(data: dict[str, Any]) -> Parsed:
    asked = parse_compact(data).complete(before=None, items={})
    return Parsed(asked.ignored, (asked.own, asked.chat))


def _message(data: dict[str, Any]) -> Parsed:
    asked = parse_count(data)
    return Parsed(asked.ignored, (asked.own, asked.chat))


def _chat(data: dict[str, Any]) -> Parsed:
    request = parse_meaning(data)
    return Parsed(request.ignored, (request,))


def _completion(data: dict[str, Any]) -> Parsed:
    request = parse_completion(data)
    return Parsed(request.ignored, (request,))


Parser = Callable[[dict[str, Any]], Parsed]
MAX_DEPTH = 6
USER = [{"role": "user", "content": "x"}]
PARSERS: Mapping[str, tuple[Callable[[dict[str, Any]], Parsed], dict[str, Any]]] = {
    "/v1/chat/completions": (_chat, {"model": "m", "messages": USER}),
    "/v1/completions": (_completion, {"model": "m", "prompt": "x"}),
    "/v1/responses": (_response, {"model": "m", "input": "x"}),
    "/v1/responses/compact": (_compact, {"model": "m", "input": "x"}),
    "/v1/responses/input_tokens": (_response, {"model": "m", "input": "x"}),
    "/v1/messages": (_message, {"model": "m", "messages": USER, "max_tokens": 9}),
    "/v1/messages/count_tokens": (_message, {"model": "m", "messages": USER}),
}
BESIDE: Mapping[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "tool_choice": {
        "/v1/messages": {"tools": [{"name": "x", "input_schema": {"type": "object"}}]},
        "": {"tools": [{"type": "function", "function": {"name": "x"}, "name": "x"}]},
    },
}
"""Fields of the body that are not taken alone."""


BESIDE_IN: Mapping[str, dict[str, Any]] = {
    "ChatCompletionAssistantMessageParam": {"content": "x"},
    "BetaSystemMessageParam": {"content": "x"},
    "ChatCompletionAllowedToolsParam": {"tools": [{"type": "function", "function": {"name": "x"}}]},
    "ToolChoiceAllowedParam": {"tools": [{"type": "function", "name": "x"}]},
}
"""What an object needs beside what its type says."""
READ_AS: Mapping[str, str] = {"schema": "schema_", "input_schema": "parameters"}
"""Fields that have another name in the models here."""


@dataclass(frozen=True)
class Place:
    """One object within a body."""

    path: str
    trail: tuple[str, ...]
    kind: Any
    build: Callable[[dict[str, Any]], dict[str, Any]]
    """The body with this object in its place."""

    @property
    def name(self) -> str:
        """`/v1/messages messages.content TextBlockParam`."""
        return f"{self.path} {'.'.join(self.trail)} {self.kind.__name__}"


def fates() -> Iterator[tuple[Place, str, Fate]]:
    """Every field of every object within every body; what lies in an object that is not read shares its fate."""
    for path, (parse, base) in PARSERS.items():
        seen: set[tuple[Any, ...]] = set()
        for root in TYPES[path]:
            for place in _places(path, (), root, lambda body, base=base: {**base, **body}):
                yield from _below(place, parse, seen)


def _below(place: Place, parse: Parser, seen: set[tuple[Any, ...]]) -> Iterator[tuple[Place, str, Fate]]:
    if (place.trail[-2:], place.kind) in seen or len(place.trail) > MAX_DEPTH:
        return
    seen.add((place.trail[-2:], place.kind))
    for name, fate in _fields(place, parse):
        yield place, name, fate
        if fate is Fate.READ:
            for inner in _places(place.path, place.trail, place.kind, place.build, only=name):
                yield from _below(inner, parse, seen)


def _places(path: str, trail: tuple[str, ...], kind: Any, build: Any, only: str | None = None) -> Iterator[Place]:
    """The objects within one."""
    for name, hint in typing_extensions.get_type_hints(kind).items():
        for inner, wrap in _objects(hint) if only in (None, name) else ():

            def within(value: dict[str, Any], wrap: Any = wrap, name: str = name) -> dict[str, Any]:
                outer = {} if not trail else minimal(kind)
                return build({**outer, **_beside(path, name), name: wrap(value)})

            yield Place(path, (*trail, name), inner, within)


def _beside(path: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = BESIDE.get(name, {})
    if name == "tool_choice":
        return found["/v1/messages"] if path.startswith("/v1/messages") else found[""]
    return found


def _objects(hint: Any) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """The objects a field may hold, with what puts one in the field's form."""
    origin = get_origin(hint)
    if typing_extensions.is_typeddict(hint):
        yield hint, lambda value: value
    elif origin is Annotated or origin in (typing_extensions.Required, typing_extensions.NotRequired):
        yield from _objects(get_args(hint)[0])
    elif origin is not Literal and origin is not dict:
        is_list = _is_list(origin)
        for part in get_args(hint):
            for inner, wrap in _objects(part):
                yield inner, functools.partial(_listed, wrap) if is_list else wrap


def _listed(wrap: Callable[[Any], Any], value: Any) -> list[Any]:
    return [wrap(value)]


def _is_list(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Iterable) and origin is not dict


def minimal(kind: Any) -> dict[str, Any]:
    """An object with what it has to have."""
    hints = typing_extensions.get_type_hints(kind, include_extras=True)
    needed = {name: value_of(hint) for name, hint in hints.items() if _is_required(hint, kind)}
    return {**needed, **BESIDE_IN.get(kind.__name__, {})}


def _is_required(hint: Any, kind: Any) -> bool:
    """`__required_keys__` is wrong where annotations are texts, as they are in both SDKs."""
    if get_origin(hint) is Annotated:
        return _is_required(get_args(hint)[0], kind)
    return get_origin(hint) is typing_extensions.Required or (
        bool(kind.__total__) and get_origin(hint) is not typing_extensions.NotRequired
    )


def value_of(hint: Any) -> Any:
    """Some right value."""
    origin = get_origin(hint)
    if typing_extensions.is_typeddict(hint):
        return minimal(hint)
    if origin is Annotated or origin in (typing_extensions.Required, typing_extensions.NotRequired):
        return value_of(get_args(hint)[0])
    if origin is Literal:
        return get_args(hint)[0]
    if origin is dict or hint in (object, Any):
        return {}
    if _is_list(origin):
        return [value_of(get_args(hint)[0])]
    if get_args(hint):
        return value_of(next(part for part in get_args(hint) if part is not type(None)))
    return {str: "x", int: 1, float: 0.5, bool: True}.get(hint, "x")


def _fields(place: Place, parse: Parser) -> Iterator[tuple[str, Fate]]:
    hints = typing_extensions.get_type_hints(place.kind)
    plain = minimal(place.kind)
    whole = _whole(place, parse, plain)
    for name, hint in hints.items():
        yield name, whole or _fate(place, parse, {**plain, name: value_of(hint)}, name)


def _whole(place: Place, parse: Parser, plain: dict[str, Any]) -> Fate | None:
    """What becomes of the object, where that decides over its fields."""
    try:
        parsed = parse(place.build(plain))
    except ApiError:
        return Fate.REFUSED
    kind = f"[{plain.get('type')}]"
    return Fate.LEFT_OUT if any(name.endswith(kind) for name in parsed.ignored) else None


def _fate(place: Place, parse: Parser, value: dict[str, Any], name: str) -> Fate:
    try:
        parsed = parse(place.build(value))
    except ApiError:
        return Fate.REFUSED
    if any(ignored == name or ignored.endswith(f".{name}") for ignored in parsed.ignored):
        return Fate.NAMED
    name = READ_AS.get(name, name)
    if any(name in model.model_fields_set and name not in (model.model_extra or {}) for model in _models(parsed.trees)):
        return Fate.READ
    return Fate.SILENT


def _models(values: Any) -> Iterator[BaseModel]:
    for value in values:
        if isinstance(value, BaseModel):
            yield value
            yield from _models(dict(value).values())
        elif isinstance(value, list | tuple):
            yield from _models(value)
        elif isinstance(value, dict):
            yield from _models(value.values())
