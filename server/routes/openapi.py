"""`/openapi.json` as FastAPI makes it, and what it cannot know: bodies that are read by functions of our own, and the
types of answers that are written by encoders of our own.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import model_json_schema

from server.routes.described import SCHEMAS, Described
from server.schemas.chat import ChatRequest
from server.schemas.surface import Surface, Use

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel
    from starlette.routing import BaseRoute

Schema = dict[str, Any]
_WORDS: Final = "Fields that are not named here are accepted and named in the header x-onecard-ignored."
_KEYS: Final[Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(routes: Sequence[BaseRoute], models: Sequence[str]) -> Schema:
    """The whole document of a server that has these models, names and aliases."""
    described = [route for route in routes if isinstance(route, Described) and route.include_in_schema]
    for route in described:
        route.describe_request(models[0] if models else "")
    whole = get_openapi(title="onecard", version=version("onecard"), description=_WORDS, routes=described)
    schemas: Schema = {}
    for surface in (route.surface for route in described if route.surface is not None):
        schemas |= _request(surface, models)
    kinds = list(dict.fromkeys(kind for route in described for kind in route.answers))
    _, answers = msgspec.json.schema_components(kinds, ref_template=SCHEMAS + "{name}")
    made: Schema = whole.get("components", {})
    schemas = made.get("schemas", {}) | schemas | answers
    whole["components"] = {**made, "schemas": dict(sorted(schemas.items())), "securitySchemes": _KEYS}
    return {**whole, "security": [{}, *({name: []} for name in _KEYS)]}


def _request(surface: Surface, models: Sequence[str]) -> dict[str, Schema]:
    """The schemas of one surface's body, each under the surface's name."""
    own, schemas = _schema(surface.model, surface.name + "Request")
    properties: dict[str, Schema] = dict(own.get("properties", {}))
    if surface.shared:
        chat, inner = _schema(ChatRequest, surface.name + "RequestChat")
        properties |= {name: chat["properties"][name] for name in surface.shared if name in chat["properties"]}
        schemas |= inner
    for name, use in surface.fields.items():
        if use is Use.HARMLESS and name not in properties:
            properties[name] = {"description": use.value}
        elif use is Use.NEUTRAL_ONLY:
            properties[name] = {"description": use.value, "enum": [None, *surface.refused.get(name, ())]}
    if surface.asks_model:
        properties["model"] = {"enum": list(models), "description": "Which model answers, by its name or an alias"}
    required = sorted({*own.get("required", []), *surface.required})
    whole = {"type": "object", "description": surface.summary, "properties": properties, "required": required}
    return {f"{surface.name}Request": whole, **schemas}


def _schema(model: type[BaseModel], prefix: str) -> tuple[Schema, dict[str, Schema]]:
    """A model's schema and those it refers to, their names told apart by the prefix."""
    whole: Schema = _any_of(model_json_schema(model, ref_template=f"{SCHEMAS}{prefix}{{model}}"))
    definitions: Mapping[str, Schema] = whole.pop("$defs", {})
    return whole, {f"{prefix}{name}": schema for name, schema in definitions.items()}


def _any_of(value: Any) -> Any:
    """`oneOf` as `anyOf`: a union that looks at the type takes what another of its members would take as well."""
    if isinstance(value, list):
        return [_any_of(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {"anyOf" if key == "oneOf" else key: _any_of(item) for key, item in value.items() if key != "discriminator"}
