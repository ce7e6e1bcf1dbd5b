"""The description of the server's own API: what each route takes and answers, built from what really checks it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from pydantic.json_schema import model_json_schema

from backends.messages import KvType
from server.schemas.chat import ChatRequest
from server.schemas.surface import Surface, Use
from server.surfaces import SURFACES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import BaseModel

Schema = dict[str, Any]

_JSON, _SSE, _TEXT = "application/json", "text/event-stream", "text/plain"
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        },
        "type": {"const": "error", "description": "On /v1/messages, as Anthropic's clients expect it."},
        "request_id": {"type": "string", "description": "On /v1/messages."},
    },
}
_READS = {
    "/health": "The process is alive; needs no key",
    "/ready": "Requests are taken",
    "/v1/status": "Budget, models with their bytes, and the queue",
    "/v1/events": "Every decision with its reason, as events",
    "/v1/capacity": "What a load would take, and which models would be evicted",
    "/v1/models": "Every model",
    "/models": "Every model, where clients of llama.cpp look",
    "/v1/models/{id}": "One model",
    "/v1/responses/{id}": "A stored response",
    "/v1/responses/{id}/input_items": "The input items of a stored response",
    "/props": "What clients of llama.cpp ask of a model",
    "/metrics": "The Prometheus page",
    "/openapi.json": "This description",
}
_QUERIES: dict[str, list[tuple[str, Schema, bool]]] = {
    "/v1/capacity": [
        ("model", {"type": "string"}, False),
        ("context", {"type": "integer", "minimum": 8, "maximum": 2**31 - 1}, False),
        ("parallel", {"type": "integer", "minimum": 1, "maximum": 256}, False),
        ("kv_type", {"enum": list(get_args(KvType))}, False),
    ],
    "/v1/responses/{id}": [("stream", {"enum": ["false"]}, False)],
    "/v1/responses/{id}/input_items": [
        ("limit", {"type": "integer", "minimum": 1, "maximum": 100}, False),
        ("order", {"enum": ["asc", "desc"]}, False),
        ("after", {"type": "string"}, False),
    ],
    "/props": [("model", {"type": "string"}, False)],
    "/v1/events": [("last", {"type": "integer", "minimum": 0}, False)],
}


def describe(models: Sequence[str]) -> Schema:
    """The whole document of a server that has these models, names and aliases."""
    schemas: dict[str, Schema] = {"Error": _ERROR}
    paths: dict[str, dict[str, Schema]] = {}
    for surface in SURFACES:
        schemas |= _request(surface, models)
        paths[surface.path] = {"post": _post(surface)}
    for path, summary in _READS.items():
        paths.setdefault(path, {})["get"] = _operation(summary, path, _answers(path))
    for verb in ("load", "unload"):
        path = f"/v1/models/{{id}}/{verb}"
        operation = _operation(f"{verb.capitalize()} a model by hand", path, [_JSON])
        paths[path] = {"post": {**operation, "requestBody": {"content": {_JSON: {"schema": {}}}}}}
    deleted = _operation("Forget a stored response", "/v1/responses/{id}", [_JSON])
    paths["/v1/responses/{id}"]["delete"] = deleted
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onecard",
            "version": version("onecard"),
            "description": "Fields that are not named here are accepted and named in the header x-onecard-ignored.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _answers(path: str) -> list[str]:
    return [_TEXT] if path == "/metrics" else [_SSE] if path == "/v1/events" else [_JSON]


def _operation(summary: str, path: str, answers: Iterable[str]) -> Schema:
    """What all operations have in common: parameters, and errors of one shape."""
    parameters = [
        {"name": name, "in": "query", "required": required, "schema": schema}
        for name, schema, required in _QUERIES.get(path, [])
    ]
    if "{id}" in path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}})
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "The answer", "content": {media: {"schema": {}} for media in answers}},
            "default": {
                "description": "What went wrong",
                "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }


def _post(surface: Surface) -> Schema:
    operation = _operation(surface.summary, surface.path, [_JSON, _SSE] if surface.streams else [_JSON])
    content = {_JSON: {"schema": {"$ref": f"#/components/schemas/{surface.name}Request"}}}
    return {**operation, "requestBody": {"required": True, "content": content}}


def _request(surface: Surface, models: Sequence[str]) -> dict[str, Schema]:
    """The schemas of one surface's body, each under the surface's name."""
    own, schemas = _schema(surface.model, surface.name)
    properties: dict[str, Schema] = dict(own.get("properties", {}))
    if surface.shared:
        chat, inner = _schema(ChatRequest, surface.name + "Chat")
        properties |= {name: chat["properties"][name] for name in surface.shared if name in chat["properties"]}
        schemas |= inner
    for name, use in surface.fields.items():
        if use is Use.HARMLESS and name not in properties:
            properties[name] = {"description": use.value}
        elif use is Use.NEUTRAL_ONLY:
            properties[name] = {"description": use.value, "enum": [None, *surface.refused.get(name, ())]}
    properties["model"] = {"enum": list(models), "description": "Which model answers, by its name or an alias"}
    required = sorted({*own.get("required", []), *surface.required})
    whole = {"type": "object", "description": surface.summary, "properties": properties, "required": required}
    return {f"{surface.name}Request": whole, **schemas}


def _schema(model: type[BaseModel], prefix: str) -> tuple[Schema, dict[str, Schema]]:
    """A model's schema and those it refers to, their names told apart by the prefix."""
    whole: Schema = _any_of(model_json_schema(model, ref_template=f"#/components/schemas/{prefix}{{model}}"))
    definitions: Mapping[str, Schema] = whole.pop("$defs", {})
    return whole, {f"{prefix}{name}": schema for name, schema in definitions.items()}


def _any_of(value: Any) -> Any:
    """`oneOf` as `anyOf`: a union that looks at the type takes what another of its members would take as well."""
    if isinstance(value, list):
        return [_any_of(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {"anyOf" if key == "oneOf" else key: _any_of(item) for key, item in value.items() if key != "discriminator"}
