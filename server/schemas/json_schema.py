"""JSON schemas of clients: bounded before any grammar is made of them, and cleared of what says nothing.

Owns what may be in a schema at all; whether the rest can be enforced is the worker's to say, with the same paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from server.errors import ApiError, clip

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 512 * 1024
MAX_NODES = 20_000
MAX_JSON_DEPTH = 96
MAX_CHOICES = 10_000
"""Values of all enumerations together."""
MAX_PROPERTIES = 4_000
MAX_OPTIONAL = 300
"""Of one object: a grammar of properties that may each be left out grows with the square of their number."""
MAX_ALTERNATIVES = 256
"""Combinations of alternatives that have to hold at once."""
MAX_PATTERN_CHARS = 4096
MAX_PATTERN_DEPTH = 64
MAX_AT_LEAST = 65_536
MAX_SAFE_INTEGER = 2**53 - 1

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
_GROUPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLES = ("items", "additionalProperties", "additionalItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_AT_LEAST = ("minItems", "minLength", "minProperties")
_AT_MOST = ("maxItems", "maxLength", "maxProperties")
_REPEATED_ANCHOR = re.compile(r"(?<!\\)(?:\\\\)*(?:[\^$]|\\[bB])(?:[*+?]|\{\d)")
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
    if (depth := _depth(schema)) > MAX_JSON_DEPTH:
        raise _too_much(param, "levels", depth, MAX_JSON_DEPTH)
    walk = _Walk(schema, strict=strict)
    cleared = walk.clear(schema, param)
    _Alternatives(schema).check(param)
    return Checked(cleared, sorted(walk.unenforced))


class _Walk:
    """One pass over every subschema."""

    def __init__(self, root: Any, *, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._n_nodes = self._n_choices = self._n_properties = 0
        self.unenforced: set[str] = set()

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
                self._keep(cleared, key, value, path)
        return cleared

    def _keep(self, cleared: dict[str, Any], key: str, value: Any, path: str) -> None:
        if key in _UNENFORCED:
            if self._strict:
                raise _wrong(f"{path}.{key}", "this keyword cannot be enforced", code="unsupported_value")
            self.unenforced.add(key)
        elif key in _GROUPS:
            cleared[key] = {name: self.clear(child, f"{path}.{key}.{name}") for name, child in value.items()}
        elif key == "items" and isinstance(value, list):  # the older spelling of tuples
            cleared["prefixItems"] = [self.clear(child, f"{path}.items[{i}]") for i, child in enumerate(value)]
        elif key in _SINGLES:
            cleared["items" if key == "additionalItems" else key] = self.clear(value, f"{path}.{key}")
        elif key in _LISTS:
            name = "anyOf" if key == "oneOf" and not self._strict else key
            if name != key:
                self.unenforced.add(key)
            children = [self.clear(child, f"{path}.{key}[{i}]") for i, child in enumerate(value)]
            cleared[name] = [*cleared.get(name, []), *children]
        else:
            cleared[key] = value

    def _says_nothing(self, key: str, value: Any) -> bool:
        """Keywords that change no answer: annotations, and conditions that always hold."""
        if key == "format":
            return value not in _FORMATS
        if key == "propertyNames":
            return value in (True, {}, {"type": "string"})
        return (key == "uniqueItems" and value is False) or (key == "additionalItems" and isinstance(value, bool))

    def _count(self, schema: dict[str, Any], path: str) -> None:
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise _too_much(path, "subschemas", self._n_nodes, MAX_NODES)

    def _check_values(self, schema: dict[str, Any], path: str) -> None:
        self._check_type(schema.get("type"), f"{path}.type")
        for key in _GROUPS:
            if key in schema and not isinstance(schema[key], dict):
                raise _wrong(f"{path}.{key}", "it is an object of schemas")
        for key in _LISTS:
            if key in schema and not (isinstance(schema[key], list) and schema[key]):
                raise _wrong(f"{path}.{key}", "it is a list of schemas")
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
        seen: list[Any] = []
        while True:
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise _wrong(path, "only references within the schema are followed")
            if reference in seen:
                raise _wrong(path, f"'{clip(reference)}' refers to itself")
            seen.append(reference)
            found, target = resolved(self._root, reference)
            if not found:
                raise _wrong(path, f"'{clip(reference)}' refers to nothing")
            if not isinstance(target, dict) or "$ref" not in target:
                return
            reference = target["$ref"]


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


def resolved(root: Any, reference: str) -> tuple[bool, Any]:
    """Whether a local reference points to something, and to what."""
    target = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and name in target:
            target = target[name]
        elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
            target = target[int(name)]
        else:
            return False, None
    return reference == "#" or reference.startswith("#/"), target


class _Alternatives:
    """How many combinations a schema's alternatives make where several of them have to hold at once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, int] = {}

    def check(self, path: str) -> None:
        """Raises ApiError 400."""
        for schema in _subschemas(self._root):
            if self._of(schema) > MAX_ALTERNATIVES and ("allOf" in schema or "$ref" in schema):
                raise _wrong(path, f"its alternatives make more than {MAX_ALTERNATIVES} combinations")

    def _of(self, schema: Any) -> int:
        if not isinstance(schema, dict):
            return 1
        if (known := self._known.get(id(schema))) is not None:
            return known
        self._known[id(schema)] = 1  # a reference back to here adds nothing
        total = 1
        for key in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(key), list):
                total *= sum(self._of(branch) for branch in branches)
        for part in schema.get("allOf") or []:
            total = min(total * self._of(part), MAX_NODES)
        if isinstance(reference := schema.get("$ref"), str):
            total = min(total * self._of(resolved(self._root, reference)[1]), MAX_NODES)
        self._known[id(schema)] = total
        return total


def _subschemas(root: Any) -> Iterator[dict[str, Any]]:
    """Every object in it."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _depth(value: Any) -> int:
    """Levels of objects and lists."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(child, depth + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def _wrong(path: str, why: str, *, code: str = "invalid_json_schema") -> ApiError:
    shown = _shown(path)
    return ApiError(400, f"Invalid schema at '{shown}': {why}.", param=shown, code=code)


def _too_much(path: str, what: str, n: int, limit: int) -> ApiError:
    return _wrong(path, f"{n} {what} are more than the {limit} that can be enforced")


def _shown(path: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in path)[:256]
