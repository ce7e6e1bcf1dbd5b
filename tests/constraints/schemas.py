"""Schemas as real clients send them, and as attackers do."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def thing(**properties: Any) -> Schema:
    """An object in which everything is required and nothing else allowed."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "required": ["value", "children"],
    "additionalProperties": False,
}

PYDANTIC = {
    "$defs": {
        "Address": thing(
            street={"title": "Street", "type": "string", "maxLength": 12}, zip={"type": "string", "pattern": r"^\d{5}$"}
        ),
        "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
    },
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"title": "Name", "type": "string", "description": "who", "maxLength": 10},
        "age": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 150}, {"type": "null"}], "default": None},
        "home": {"$ref": "#/$defs/Address"},
        "colors": {"type": "array", "items": {"$ref": "#/$defs/Color"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "home", "colors"],
    "additionalProperties": False,
}

ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        "tags": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "boolean"},
            "maxProperties": 2,
        },
        "text": {"type": "string", "maxLength": 65536, "format": "int32"},
    },
    "required": ["id", "tags"],
    "additionalProperties": False,
}

DISCRIMINATED = {
    "oneOf": [
        thing(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
        thing(kind={"const": "square"}, side={"type": "integer", "multipleOf": 2}),
    ],
    "discriminator": {"propertyName": "kind"},
}

REAL: dict[str, Schema] = {
    "flat": thing(city={"type": "string", "maxLength": 16}, population={"type": "integer", "minimum": 0}),
    "pydantic": PYDANTIC,
    "zod": ZOD,
    "tree": TREE,
    "discriminated": DISCRIMINATED,
    "choice": {"enum": ["yes", "no", None, 7, {"a": [1]}]},
    "nullable": thing(note={"type": ["string", "null"], "maxLength": 5}),
    "formats": thing(
        day={"type": "string", "format": "date"},
        id={"type": "string", "format": "uuid"},
        at={"type": "string", "format": "date-time"},
    ),
    "nested arrays": thing(
        grid={
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"type": "array", "maxItems": 2, "items": {"type": "boolean"}},
        }
    ),
    "pattern": thing(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2,4}$"}),
    "unanchored": thing(code={"type": "string", "pattern": "ab+c", "maxLength": 12}),
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"properties": {"b": {"type": "null"}}, "required": ["b"], "maxProperties": 2},
        ]
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "integer", "maximum": 3, "minimum": -3}],
        "items": False,
        "minItems": 2,
    },
    "older tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "boolean"}, {"const": "x"}],
        "additionalItems": False,
        "minItems": 2,
        "maxItems": 2,
    },
    "older tuple, and no more": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "boolean"}],
        "additionalItems": False,
    },
    "older tuple, and more": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "boolean"}],
        "additionalItems": {"const": 1},
        "maxItems": 3,
    },
    "items beside what is for tuples": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": {"type": "boolean"},
        "additionalItems": {"type": "null"},
        "maxItems": 3,
    },
    "older bounds": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        **thing(
            x={"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": False},
            y={"type": "integer", "minimum": 0, "maximum": 2, "exclusiveMaximum": True},
        ),
    },
    "definitions at a place of their own": {
        "components": {
            "schemas": {
                "Pet": thing(tag={"$ref": "#/components/schemas/Tag"}),
                "Tag": {"enum": ["a", "b"], "default": "a", "format": "pet"},
            }
        },
        **thing(pet={"$ref": "#/components/schemas/Pet"}),
    },
    "at least one more": {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a"],
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
        "maxProperties": 2,
    },
    "definitions": {
        "definitions": {"flag": {"type": "boolean"}},
        **thing(on={"$ref": "#/definitions/flag", "description": "?"}),
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": 1}},
        "additionalProperties": False,
    },
    "numbers": thing(
        x={"type": "number", "minimum": -1.5, "maximum": 1.5},
        y={"type": "integer", "exclusiveMaximum": 3, "exclusiveMinimum": -3},
    ),
    "map": {
        "type": "object",
        "patternProperties": {"^[a-c]$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
}


def deep(levels: int) -> Schema:
    schema: Schema = {"type": "boolean"}
    for _ in range(levels):
        schema = thing(a=schema)
    return schema


def nested(schema: Any) -> Schema:
    """Something wrong two levels down."""
    return thing(outer=thing(inner=schema))


REFUSED: dict[str, tuple[Any, str]] = {
    "many parentheses": (
        nested({"type": "string", "pattern": "(" * 60_000}),
        ".properties.outer.properties.inner.pattern",
    ),
    "nested groups": (
        nested({"type": "string", "pattern": "(" * 100 + "a" + ")" * 100}),
        ".properties.outer.properties.inner.pattern",
    ),
    "repeated anchor": (nested({"type": "string", "pattern": "^+x$"}), ".properties.outer.properties.inner.pattern"),
    "counted anchor": (nested({"type": "string", "pattern": "^{2}x$"}), ".properties.outer.properties.inner.pattern"),
    "itself": ({"$ref": "#"}, ".$ref"),
    "a circle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        ".$ref",
    ),
    "nowhere": (nested({"$ref": "#/$defs/x"}), ".properties.outer.properties.inner.$ref"),
    "another machine": (nested({"$ref": "http://169.254.169.254/"}), ".properties.outer.properties.inner.$ref"),
    "a file": (nested({"$ref": "file:///etc/passwd"}), ".properties.outer.properties.inner.$ref"),
    "too many items": (nested({"type": "array", "maxItems": 2**64 - 1}), ".properties.outer.properties.inner.maxItems"),
    "too few items": (nested({"type": "array", "minItems": 10**9}), ".properties.outer.properties.inner.minItems"),
    "combinations": (
        {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"a{i}": {}}}, {"type": "object"}]} for i in range(20)
            ]
        },
        "",
    ),
    "combinations by name": (
        {
            "$defs": {
                f"d{i}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "object"}]}]} for i in range(30)
            }
            | {"d30": {"anyOf": [{}] * 300}},
            "$ref": "#/$defs/d0",
        },
        "",
    ),
    "many values": ({"enum": [f"value {i}" for i in range(10_001)]}, ".enum"),
    "many optional properties": ({"type": "object", "properties": {f"p{i}": {} for i in range(400)}}, ".properties"),
    "many properties": (thing(**{f"p{i}": {} for i in range(5_000)}), ".properties"),
    "deep": (deep(70), ""),
    "no such type": (nested({"type": "hiccup"}), ".properties.outer.properties.inner.type"),
    "no schema": (nested(5), ".properties.outer.properties.inner"),
    "not": (nested({"not": {"type": "string"}}), ".properties.outer.properties.inner.not"),
    "unique": (nested({"type": "array", "uniqueItems": True}), ".properties.outer.properties.inner.uniqueItems"),
    "a whole number that doubles round": (nested({"const": 2**53 + 1}), ".properties.outer.properties.inner.const"),
    "a huge number among values": (nested({"enum": ["a", [10**25]]}), ".properties.outer.properties.inner.enum"),
    "an infinite number": (nested({"const": float("inf")}), ".properties.outer.properties.inner.const"),
    "names that may repeat": (
        nested({"type": "object", "minProperties": 2}),
        ".properties.outer.properties.inner.minProperties",
    ),
    "many parentheses at a place of their own": (
        {"$ref": "#/x/y", "x": {"y": {"type": "string", "pattern": "(" * 60_000}}},
        ".x.y.pattern",
    ),
    "a format of no kind": (
        nested({"type": "string", "format": ["date"]}),
        ".properties.outer.properties.inner.format",
    ),
    "properties of no kind": ({"type": "object", "properties": [1]}, ".properties"),
    "required of no kind": ({"type": "object", "required": "a"}, ".required"),
}
"""Refused before any work, with the path."""

UNCOMPILABLE: dict[str, tuple[Any, str]] = {
    "look-behind": (nested({"type": "string", "pattern": "(?<=a)b"}), ".properties.outer.properties.inner"),
    "back-reference": (nested({"type": "string", "pattern": r"(a)\1"}), ".properties.outer.properties.inner"),
    "word border": (nested({"type": "string", "pattern": r"\bfoo\b"}), ".properties.outer.properties.inner"),
    "ambiguous one of": (
        nested({"oneOf": [{"type": "object"}, {"type": "object", "maxProperties": 1}]}),
        ".properties.outer.properties.inner",
    ),
    "nothing fits": (nested({"type": "integer", "minimum": 5, "maximum": 4}), ".properties.outer.properties.inner"),
    "in a definition": (
        {"$defs": {"d": {"type": "string", "pattern": "(?=a)"}}, **thing(x={"$ref": "#/$defs/d"})},
        ".$defs.d",
    ),
    "false": (False, ""),
}
"""Refused by the worker, with the path."""
