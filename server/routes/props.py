"""`GET /props`, as editors probe llama.cpp's server for a model's context. Never loads, wakes or keeps a model."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from server.output.frame import to_json
from server.routes.query import once
from server.routes.services import Services, header_text, services
from server.scheduling.decisions import ModelState
from server.settings.sampling import plain_sampling

if TYPE_CHECKING:
    from starlette.requests import Request

    from server.settings.catalog import CatalogEntry


async def props(request: Request) -> Response:
    """Of the model in `?model=`, or of the only one; of several that are not told apart what holds for all."""
    app = services(request)
    name = once(request, "model") or None
    single = name is not None or len(app.catalog.entries) == 1
    if single:
        await app.look_once(app.entry(name))
    found = _of(app, app.entry(name)) if single else _of_all(app)
    return Response(to_json({**found, "build_info": f"onecard {version('onecard')}"}), media_type="application/json")


def _of(app: Services, entry: CatalogEntry) -> dict[str, Any]:
    ready, state = app.ready(entry), app.pool.info(entry.name).state
    return {
        "default_generation_settings": {
            "n_ctx": app.context_limit(entry),
            "params": plain_sampling(entry.config, app.pool.info(entry.name).header),
        },
        "total_slots": ready.parallel if ready is not None else entry.config.parallel,
        "model_alias": entry.name,
        "model_path": header_text(entry.name),
        "chat_template_caps": {"supports_tools": "tools" in app.capabilities(entry)},
        "modalities": {"vision": False, "audio": False},
        "is_sleeping": state not in (ModelState.READY, ModelState.DRAINING),
    }


def _of_all(app: Services) -> dict[str, Any]:
    """The shape of a llama.cpp server that routes to several models."""
    return {
        "role": "router",
        "default_generation_settings": {"n_ctx": 0, "params": {}},
        "total_slots": sum(entry.config.parallel for entry in app.catalog.entries),
        "model_alias": "onecard",
        "model_path": "none",
        "modalities": {"vision": False, "audio": False},
    }
