"""`GET /props`, as editors probe llama.cpp's server for a model's context. Never loads, wakes or keeps a model."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from server.output.frame import to_json
from server.output.model_shapes import Props
from server.routes.dependencies import App, ModelQuery, StrictQuery
from server.routes.described import Described, answers
from server.routes.services import header_text
from server.scheduling.decisions import ModelState
from server.settings.sampling import plain_sampling

if TYPE_CHECKING:
    from server.routes.services import ModelFacts, Services

router = APIRouter(route_class=Described, tags=["models"])


@router.get("/props", responses=answers(Props))
async def props(app: App, query: Annotated[ModelQuery, Depends(StrictQuery(ModelQuery))]) -> Response:
    """What clients of llama.cpp ask of a model.

    Of the model in `?model=`, or of the only one; of several that are not told apart what holds for all.
    """
    single = bool(query.model) or len(app.entries) == 1
    found = _of((await app.listed(app.model(query.model or None)))[0]) if single else _of_all(app)
    return Response(to_json({**found, "build_info": f"onecard {version('onecard')}"}), media_type="application/json")


def _of(model: ModelFacts) -> dict[str, Any]:
    ready, entry = model.ready, model.entry
    return {
        "default_generation_settings": {
            "n_ctx": model.context_limit,
            "params": plain_sampling(entry.config, model.header),
        },
        "total_slots": ready.parallel if ready is not None else entry.config.parallel,
        "model_alias": model.name,
        "model_path": header_text(model.name),
        "chat_template_caps": {"supports_tools": "tools" in model.capabilities},
        "modalities": {"vision": "vision" in model.capabilities, "audio": "hearing" in model.capabilities},
        "is_sleeping": model.info.state not in (ModelState.READY, ModelState.DRAINING),
    }


def _of_all(app: Services) -> dict[str, Any]:
    """The shape of a llama.cpp server that routes to several models."""
    return {
        "role": "router",
        "default_generation_settings": {"n_ctx": 0, "params": {}},
        "total_slots": sum(entry.config.parallel for entry in app.entries),
        "model_alias": "onecard",
        "model_path": "none",
        "modalities": {"vision": False, "audio": False},
    }
