"""JSON schemas of clients: bounded before any grammar is made of them, and cleared of what says nothing.

Owns what may be in a schema at all; whether the rest can be enforced is the worker's to say, with the same paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.errors import ApiError, clip
from server.schemas.schema_shape import (
    GROUPS,
    LARGEST_BOUND,
    LISTS,
    MAX_ALTERNATIVES,
    MAX_SAFE_INTEGER,
    SINGLES,
    Alternatives,
    depth,
    enforceable,
    inexact,
    over_keywords,
    resolved,
)

MAX_BYTES = 512 * 1024
MAX_NODES = 20_000
MAX_JSON_DEPTH = 96
MAX_CHOICES = 10_000
"""Values of all enumerations together."""
MAX_PROPERTIES = 4_000
MAX_OPTIONAL = 300
"""Of one object: a grammar of properties that may each be left out grows with the square of their number."""
MAX_PATTERN_CHARS = 4096
MAX_PATTERN_DEPTH = 64
MAX_AT_LEAST = 65_536

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""Of strings, and enforced; JSON Schema takes every other `format` for a remark."""
_UNENFORCED = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
        *("dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
        *("$dynamicRef", "$recursiveRef"),
    }
)
_REMARKS = frozenset({"$comment", "$id", "id", "$schema", "default", "examples", "title", "description", "x-guidance"})
_FROM_ABOVE = ("maximum", "exclusiveMaximum")
_FROM_BELOW = ("minimum", "exclusiveMinimum")
_AT_LEAST = ("minItems", "minLength", "minProperties")
_AT_MOST = ("maxItems", "maxLength", "maxProperties")
_REPEATED_ANCHOR = re.compile(r"(?<!\\)(?:\\\\)*(?:[\^$]|\\[bB])(?:[*+?]|\{\d)")
_NO_WORD = re.compile(r"[^A-Za-z0-9]")
_CLASS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)


@dataclass
class Checked:
    """A schema that may go to a worker."""

    schema: Any
    unenforced: list[str] = field(default_factory=list)
    """Keywords that were left out, each once: the client does not insist on them."""

    @property
    def text(self) -> str:
        """The schema as JSON text, its properties in the client's order."""
        return msgspec.json.encode(self.schema).decode()


def checked(schema: Any, param: str, *, strict: bool = True) -> Checked:
    """The schema, bounded and cleared. Raises ApiError 400 that names the path of what is wrong.

    Without `strict`, keywords that cannot be enforced are left out and named, instead of refused.
    """
    if not isinstance(schema, dict | bool):
        raise _wrong(param, "a schema is an object")
    n_bytes = len(msgspec.json.encode(schema))
    if n_bytes > MAX_BYTES:
        raise _too_much(param, "bytes", n_bytes, MAX_BYTES)
    if (levels := depth(schema)) > MAX_JSON_DEPTH:
        raise _too_much(param, "levels", levels, MAX_JSON_DEPTH)
    walk = _Walk(schema, param, strict=strict)
    cleared = walk.clear(schema, param)
    walk.clear_moved()
    if walk.moved:
        cleared = {**cleared, "$defs": {**cleared.get("$defs", {}), **walk.moved}}
    if Alternatives(schema).too_many:
        raise _wrong(param, f"its alternatives make more than {MAX_ALTERNATIVES} combinations")
    return Checked(cleared, sorted(walk.unenforced))


class _Walk:
    """One pass over every subschema."""

    def __init__(self, root: Any, param: str, *, strict: bool) -> None:
        self._root = root
        self._param = param
        self._strict = strict
        self._n_nodes = self._n_choices = self._n_properties = 0
        self.unenforced: set[str] = set()
        self.moved: dict[str, Any] = {}
        """Subschemas at places of the client's own, by their names in `$defs`."""
        self._names: dict[str, str] = {}
        """Those names by the references that lead there."""
        self._unmoved: list[str] = []
        """Those references whose subschema is not cleared yet."""
        self._sound: set[str] = set()
        """References that lead to something in the end."""

    def clear(self, schema: Any, path: str) -> Any:
        """The subschema without remarks. Raises ApiError."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise _wrong(path, "a schema is an object")
        self._count(schema, path)
        self._check_values(schema, path)
        cleared: dict[str, Any] = {}
        for key, value in schema.items():
            if not (key in _REMARKS or self._says_nothing(key, value)):
                self._keep(cleared, schema, key, path)
        return cleared

    def _keep(self, cleared: dict[str, Any], schema: dict[str, Any], key: str, path: str) -> None:
        value = schema[key]
        if (why := _unenforceable(schema, key)) is not None:
            if self._strict:
                raise _wrong(f"{path}.{key}", why, code="unsupported_value")
            self.unenforced.add(key)
        elif key in _FROM_ABOVE or key in _FROM_BELOW:
            cleared[key] = _bound(schema, key)
        elif key == "additionalItems":
            if isinstance(schema.get("items"), list):  # else it says nothing
                cleared["items"] = self.clear(value, f"{path}.{key}")
        elif key in GROUPS:
            cleared[key] = {name: self.clear(child, f"{path}.{key}.{name}") for name, child in value.items()}
        elif key == "$ref" and not over_keywords(value):
            cleared[key] = self._move(value)
        elif key == "items" and isinstance(value, list):  # the older spelling of tuples
            cleared["prefixItems"] = [self.clear(child, f"{path}.items[{i}]") for i, child in enumerate(value)]
        elif key in SINGLES:
            cleared[key] = self.clear(value, f"{path}.{key}")
        elif key in LISTS:
            name = "anyOf" if key == "oneOf" and not self._strict else key
            if name != key:
                self.unenforced.add(key)
            children = [self.clear(child, f"{path}.{key}[{i}]") for i, child in enumerate(value)]
            cleared[name] = [*cleared.get(name, []), *children]
        else:
            cleared[key] = value

    def _move(self, reference: str) -> str:
        """Refer to where what the reference leads to will be."""
        if reference not in self._names:
            self._names[reference] = f"{_NO_WORD.sub('_', reference[2:])}_{len(self._names)}"
            self._unmoved.append(reference)
        return f"#/$defs/{self._names[reference]}"

    def clear_moved(self) -> None:
        """Clear what moves, once each: one after the other, because each may lead to the next. Raises ApiError."""
        while self._unmoved:
            reference = self._unmoved.pop()
            target = resolved(self._root, reference)[1]
            path = self._param + reference[1:].replace("/", ".")
            self.moved[self._names[reference]] = self.clear(target, path)

    def _says_nothing(self, key: str, value: Any) -> bool:
        """Keywords that change no answer: annotations, and conditions that always hold."""
        if key == "format":
            return value not in _FORMATS
        if key == "propertyNames":
            return value in (True, {}, {"type": "string"})
        return key == "uniqueItems" and value is False

    def _count(self, schema: dict[str, Any], path: str) -> None:
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise _too_much(path, "subschemas", self._n_nodes, MAX_NODES)

    def _check_values(self, schema: dict[str, Any], path: str) -> None:
        self._check_type(schema.get("type"), f"{path}.type")
        for key in GROUPS:
            if key in schema and not isinstance(schema[key], dict):
                raise _wrong(f"{path}.{key}", "it is an object of schemas")
        for key in LISTS:
            if key in schema and not (isinstance(schema[key], list) and schema[key]):
                raise _wrong(f"{path}.{key}", "it is a list of schemas")
        if not isinstance(schema.get("format", ""), str):
            raise _wrong(f"{path}.format", "it is a string")
        if "pattern" in schema:
            check_pattern(schema["pattern"], f"{path}.pattern")
        for pattern in schema.get("patternProperties", {}):
            check_pattern(pattern, f"{path}.patternProperties.{pattern}")
        self._check_choices(schema, path)
        self._check_properties(schema, path)
        _check_counts(schema, path)
        if "$ref" in schema:
            self._check_reference(schema["$ref"], f"{path}.$ref")

    def _check_type(self, kind: Any, path: str) -> None:
        kinds = kind if isinstance(kind, list) else [] if kind is None else [kind]
        for name in kinds:
            if not isinstance(name, str) or name not in _TYPES:
                raise _wrong(path, f"'{clip(name)}' is no type; there are {', '.join(sorted(_TYPES))}")

    def _check_choices(self, schema: dict[str, Any], path: str) -> None:
        if "enum" not in schema:
            return
        if not isinstance(schema["enum"], list) or not schema["enum"]:
            raise _wrong(f"{path}.enum", "it is a list of values")
        self._n_choices += len(schema["enum"])
        if self._n_choices > MAX_CHOICES:
            raise _too_much(f"{path}.enum", "values", self._n_choices, MAX_CHOICES)

    def _check_properties(self, schema: dict[str, Any], path: str) -> None:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _wrong(f"{path}.required", "it is a list of names")
        self._n_properties += len(properties)
        if self._n_properties > MAX_PROPERTIES:
            raise _too_much(f"{path}.properties", "properties", self._n_properties, MAX_PROPERTIES)
        optional = len(properties.keys() - set(required))
        if optional > MAX_OPTIONAL:
            raise _too_much(f"{path}.properties", "properties that are not required", optional, MAX_OPTIONAL)

    def _check_reference(self, reference: Any, path: str) -> None:
        seen: set[str] = set()
        while True:
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise _wrong(path, "only references within the schema are followed")
            if reference in seen:
                raise _wrong(path, f"'{clip(reference)}' refers to itself")
            if reference in self._sound:
                break
            seen.add(reference)
            found, target = resolved(self._root, reference)
            if not found:
                raise _wrong(path, f"'{clip(reference)}' refers to nothing")
            if not isinstance(target, dict) or "$ref" not in target:
                break
            reference = target["$ref"]
        self._sound |= seen


def _unenforceable(schema: dict[str, Any], key: str) -> str | None:
    """Why a keyword cannot be enforced; None where it can, or says nothing at all."""
    value = schema[key]
    if key in _UNENFORCED:
        return "this keyword cannot be enforced"
    if key in ("const", "enum") and (number := inexact(value)) is not None:
        return f"{clip(number)} cannot be written exactly; numbers are, up to {MAX_SAFE_INTEGER}"
    if key in (*_FROM_ABOVE, *_FROM_BELOW) and value is not None and _bound(schema, key) is None:
        return f"numbers beyond {LARGEST_BOUND} cannot be written"
    # A grammar does not remember names, so one that is not declared may come twice and counts once.
    if key == "minProperties" and value > (most := len(set(schema.get("required", []))) + 1):
        return f"at most {most} can be enforced here, which is one more than there are required properties"
    return None


def _bound(schema: dict[str, Any], key: str) -> Any:
    """The bound as it is enforced, None where it cannot be; draft 4 has booleans there, and other things stay too."""
    value = schema[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    strict = key.startswith("exclusive") or schema.get(f"exclusive{key.capitalize()}") is True
    return enforceable(value, from_above=key in _FROM_ABOVE, strict=strict)


def _check_counts(schema: dict[str, Any], path: str) -> None:
    for key in (*_AT_LEAST, *_AT_MOST):
        if key not in schema:
            continue
        value = schema[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _wrong(f"{path}.{key}", "it is a whole number from 0")
        limit = MAX_AT_LEAST if key in _AT_LEAST else MAX_SAFE_INTEGER
        if value > limit:
            raise _wrong(f"{path}.{key}", f"at most {limit} can be enforced", code="integer_above_max_value")


def check_pattern(pattern: Any, path: str) -> None:
    """Bounds of a regular expression, seen without compiling it. Raises ApiError 400."""
    if not isinstance(pattern, str):
        raise _wrong(path, "a pattern is a string")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _too_much(path, "characters", len(pattern), MAX_PATTERN_CHARS)
    depth = 0
    for char in _CLASS.sub("", pattern):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth > MAX_PATTERN_DEPTH:
            raise _too_much(path, "nested groups", depth, MAX_PATTERN_DEPTH)
    if _REPEATED_ANCHOR.search(_CLASS.sub(lambda match: match.group() if match.group()[1] in "bB" else "x", pattern)):
        raise _wrong(path, "an anchor cannot be repeated")


def _wrong(path: str, why: str, *, code: str = "invalid_json_schema") -> ApiError:
    shown = _shown(path)
    return ApiError(400, f"Invalid schema at '{shown}': {why}.", param=shown, code=code)


def _too_much(path: str, what: str, n: int, limit: int) -> ApiError:
    return _wrong(path, f"{n} {what} are more than the {limit} that can be enforced")


def _shown(path: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in path)[:256]
