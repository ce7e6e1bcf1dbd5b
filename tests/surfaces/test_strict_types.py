"""Fields that are true or false, or one of some words, take nothing that only looks like it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from server.routes.table import SURFACES
from server.schemas.surface import Surface, Use

USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": USER},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/responses/compact": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["hi"]},
    "/infill": {"input_prefix": "hi", "input_suffix": ""},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [1]},
    "/v1/batches": {"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "/v1/fine_tuning/jobs": {"training_file": "f"},
    "/v1/audio/speech": {"input": "hi", "voice": "a"},
    "/v1/images/generations": {"prompt": "hi"},
    "/api/chat": {"messages": USER},
    "/api/generate": {"prompt": "hi"},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/api/show": {},
    "/api/pull": {},
}
NO_BOOL: tuple[Any, ...] = (0, 1, 0.0, "true", "false", "", [], {})
NO_WORD: tuple[Any, ...] = (0, 1, True, False, "", [], {})


def kinds(annotation: Any) -> Iterator[Any]:
    """The types of a field, unions and annotations taken apart."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from kinds(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from kinds(inner)
    else:
        yield annotation


def wrong(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values that must be refused."""
    for name, info in fields.items():
        found = list(kinds(info.annotation))
        name = info.alias or name
        if bool in found and not {int, float, str, list, dict} & {typing.get_origin(kind) or kind for kind in found}:
            yield from ((name, value) for value in NO_BOOL)
        elif found and all(kind is type(None) or typing.get_origin(kind) is Literal for kind in found):
            yield from ((name, value) for value in NO_WORD)
        for kind in found:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((f"{name}.{inner}", value) for inner, value in wrong(dict(kind.model_fields)))


def cases() -> list[Any]:
    return [
        pytest.param(surface.path, name, value, id=f"{surface.path[1:]} {name}={value!r}")
        for surface in SURFACES
        for name, value in [*wrong(dict(surface.model.model_fields)), *neutral(surface)]
        if name.split(".")[0] in surface.fields
    ]


def neutral(surface: Surface) -> Iterator[tuple[str, Any]]:
    """What equals, in Python, a value that asks for nothing."""
    for name in surface.named(Use.NEUTRAL_ONLY):
        for value in surface.refused[name]:
            if isinstance(value, int):
                yield from ((name, like) for like in (0, 1, 0.0, 1.0, True, "false") if type(like) is not type(value))


def test_there_are_such_fields_on_every_surface_that_generates():
    assert {case.values[0] for case in cases()} >= {"/v1/chat/completions", "/v1/completions", "/v1/messages"}
    assert ("/v1/responses", "background", 0) in [case.values for case in cases()]


@pytest.mark.parametrize(("path", "name", "value"), cases())
def test_it_is_refused_by_name(server, path, name, value):
    body: Any = value
    for part in reversed(name.split(".")):
        body = {part: body}
    answer = server.post(path, {"model": "fake", **BODIES[path], **body})
    assert answer.status == 400, answer.body
    assert answer.error["param"].split(".")[0].split("[")[0] == name.split(".")[0]
