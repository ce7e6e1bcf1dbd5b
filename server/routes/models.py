"""`GET /v1/models`, `GET /v1/models/{id}`, and loading and unloading by hand. The GETs never load or keep a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from backends.messages import Failed
from server.error_bodies import speaks_anthropic
from server.errors import ApiError, clip, from_failed
from server.output.anthropic_objects import ModelInfo, ModelPage
from server.output.frame import to_json
from server.output.model_shapes import ModelList, ModelObject
from server.pool.pool import PoolError
from server.routes.dependencies import App, StrictQuery, Whole, no_fields, require_operator
from server.routes.described import Described, answers
from server.routes.running import while_connected
from server.routes.services import ModelFacts
from server.settings.sampling import plain_sampling

if TYPE_CHECKING:
    from collections.abc import Coroutine

router = APIRouter(route_class=Described, tags=["models"])
_LARGEST_PAGE = 1000


def _for_anthropic(request: Request) -> bool:
    return speaks_anthropic(request.scope["path"], request.scope["headers"])


class PageQuery(BaseModel):
    """Which models an Anthropic client wants to see."""

    model_config = ConfigDict(populate_by_name=True)
    limit: Annotated[int, Whole(1, _LARGEST_PAGE)] = 20
    after_id: str | None = None
    before_id: str | None = None
    lifecycle: list[str] = []
    lifecycles: Annotated[list[str], Field(alias="lifecycle[]")] = []

    @property
    def wants_active(self) -> bool:
        """All models here are."""
        stages = {stage for value in (*self.lifecycle, *self.lifecycles) for stage in value.split(",")}
        return not stages or "active" in stages


Page = Annotated[PageQuery | None, Depends(StrictQuery(PageQuery, _for_anthropic))]


@router.get("/v1/models", responses=answers(ModelList | ModelPage))
@router.get("/models", summary="Every model, where clients of llama.cpp look", responses=answers(ModelList | ModelPage))
async def list_models(app: App, page: Page) -> Response:
    """Every model of the catalogue; for Anthropic's clients page by page."""
    if page is not None:
        return _json(_page(page, [_model_info(model) for model in await app.listed(*app.all_models())]))
    models = await app.listed(*app.all_models())
    return _json({"object": "list", "data": [_item(model, app.started_unix) for model in models]})


async def _named(request: Request, app: App) -> ModelFacts:
    """The model that the path names. Raises ApiError 404."""
    return app.model(request.path_params["id"])


PathModel = Annotated[ModelFacts, Depends(_named)]


async def _movable(request: Request, app: App) -> None:
    """Who may move models. Raises ApiError 403."""
    what = "Unloading" if request.scope["path"].endswith("/unload") else "Loading"
    require_operator(request, app, f"{what} a model by hand", "Loading and unloading by hand")


@router.post(
    "/v1/models/{id:path}/load", dependencies=[Depends(_movable), Depends(no_fields)], responses=answers(ModelObject)
)
async def load_model(request: Request, app: App, model: PathModel) -> Response:
    """Load a model by hand and wait until it is ready."""
    await while_connected(request, performed(app.pool.load(model.entry.name)))
    return _json(_item(app.facts(model.entry, adapter=model.adapter), app.started_unix))


@router.post(
    "/v1/models/{id:path}/unload", dependencies=[Depends(_movable), Depends(no_fields)], responses=answers(ModelObject)
)
async def unload_model(request: Request, app: App, model: PathModel) -> Response:
    """Unload a model by hand, once it has finished what it runs."""
    await while_connected(request, performed(app.pool.unload(model.entry.name)))
    return _json(_item(app.facts(model.entry, adapter=model.adapter), app.started_unix))


async def _may_pin(request: Request, app: App) -> None:
    """Who may pin models. Raises ApiError 403."""
    require_operator(request, app, "Pinning a model", "Pinning models")


@router.post(
    "/v1/models/{id:path}/pin", dependencies=[Depends(_may_pin), Depends(no_fields)], responses=answers(ModelObject)
)
async def pin_model(app: App, model: PathModel) -> Response:
    """Have a model stay once it is loaded, until it is unpinned or the configuration is read again."""
    return _pinned(app, model, pinned=True)


@router.post(
    "/v1/models/{id:path}/unpin", dependencies=[Depends(_may_pin), Depends(no_fields)], responses=answers(ModelObject)
)
async def unpin_model(app: App, model: PathModel) -> Response:
    """Let a model leave when it is idle, or for others."""
    return _pinned(app, model, pinned=False)


def _pinned(app: App, model: ModelFacts, *, pinned: bool) -> Response:
    try:
        app.pool.pin(model.entry.name, pinned=pinned)
    except PoolError as problem:
        raise from_failed(Failed(id="", code=problem.code, message=problem.message)) from None
    return _json(_item(app.facts(model.entry, adapter=model.adapter), app.started_unix))


@router.get("/v1/models/{id:path}", responses=answers(ModelObject | ModelInfo))
async def get_model(request: Request, app: App, model: PathModel) -> Response:
    """One model by name or alias."""
    (model,) = await app.listed(model)
    return _json(_model_info(model) if _for_anthropic(request) else _item(model, app.started_unix))


async def performed(work: Coroutine[None, None, None]) -> None:
    """Wait for the pool. Raises ApiError where it could not, 409 where another request took it back."""
    try:
        await work
    except PoolError as problem:
        if problem.code == "cancelled":
            raise ApiError(409, problem.message, code="load_cancelled", headers={"x-should-retry": "false"}) from None
        raise from_failed(Failed(id="", code=problem.code, message=problem.message)) from None


def _item(model: ModelFacts, created: int) -> ModelObject:
    """OpenAI's fields, and the ones in which different clients look for the context."""
    entry, info, context = model.entry, model.info, model.context_limit
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "onecard",
        "context_length": context,
        "max_model_len": context,
        "meta": {"n_ctx": model.loaded_context, "n_ctx_train": model.trained_context},
        "state": info.state.value,
        "unusable": model.unusable,
        "backend": entry.backend,
        "sampling": plain_sampling(entry.config, info.header),
        "system": entry.config.system or None,
        "remarks": list(info.header.remarks) if info.header is not None else [],
        "capabilities": model.capabilities,
        "aliases": model.aliases,
        "parent": entry.name if model.adapter else None,
    }


def _model_info(model: ModelFacts) -> ModelInfo:
    context = model.context_limit
    return ModelInfo(id=model.name, display_name=model.name, max_input_tokens=context, max_tokens=context)


def _page(asked: PageQuery, models: list[ModelInfo]) -> ModelPage:
    """The models after `after_id` or before `before_id`, `limit` of them. Raises ApiError 400."""
    limit = asked.limit
    listed = models if asked.wants_active else []
    after, before = _place("after_id", asked.after_id, listed), _place("before_id", asked.before_id, listed)
    start, end = (0 if after is None else after + 1), (len(listed) if before is None else before)
    page = listed[start:end]
    # A page before an id is the one right before it.
    page, rest = (page[-limit:], page[:-limit]) if before is not None else (page[:limit], page[limit:])
    ids = (page[0].id, page[-1].id) if page else (None, None)
    return ModelPage(data=page, has_more=bool(rest), first_id=ids[0], last_id=ids[1])


def _place(name: str, wanted: str | None, models: list[ModelInfo]) -> int | None:
    """Where the model is that a query names; None where it names none. Raises ApiError 400."""
    if wanted is None:
        return None
    places = [place for place, model in enumerate(models) if model.id == wanted]
    if not places:
        raise ApiError(400, f"Invalid '{name}': no model is called '{clip(wanted)}'.", param=name, code="invalid_value")
    return places[0]


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
