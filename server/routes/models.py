"""`GET /v1/models`, `GET /v1/models/{id}`, and loading and unloading by hand. The GETs never load or keep a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from backends.messages import Failed
from server.error_bodies import speaks_anthropic
from server.errors import ApiError, clip, from_failed
from server.output.anthropic_objects import ModelInfo, ModelPage
from server.output.frame import to_json
from server.pool.pool import PoolError
from server.routes.query import whole_number
from server.routes.rights import require_admin
from server.routes.running import while_connected
from server.routes.services import Services, services
from server.settings.config import is_loopback
from server.settings.sampling import plain_sampling

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

    from server.settings.catalog import CatalogEntry


_PAGE, _LARGEST_PAGE = 20, 1000
_LIFECYCLE = ("lifecycle", "lifecycle[]")


async def list_models(request: Request) -> Response:
    """Every model of the catalogue; for Anthropic's clients page by page."""
    app = services(request)
    if _for_anthropic(request):
        return _json(_page(request, [_model_info(app, entry) for entry in app.catalog.entries]))
    await app.look_once(*app.catalog.entries)
    data = [_item(app, entry) for entry in app.catalog.entries]
    return _json({"object": "list", "data": data})


async def get_model(request: Request) -> Response:
    """One model by name or alias."""
    app = services(request)
    entry = app.entry(request.path_params["id"])
    await app.look_once(entry)
    return _json(_model_info(app, entry) if _for_anthropic(request) else _item(app, entry))


async def load_model(request: Request) -> Response:
    """Load a model and wait until it is ready."""
    app = services(request)
    _check_right(request, app, "Loading a model by hand")
    entry = app.entry(request.path_params["id"])
    await while_connected(request, _performed(app.pool.load(entry.name)))
    return _json(_item(app, entry))


async def unload_model(request: Request) -> Response:
    """Let a model finish what it runs, then unload it."""
    app = services(request)
    _check_right(request, app, "Unloading a model by hand")
    entry = app.entry(request.path_params["id"])
    await while_connected(request, _performed(app.pool.unload(entry.name)))
    return _json(_item(app, entry))


def _check_right(request: Request, app: Services, what: str) -> None:
    """Who may move models: with keys an admin key, without any only this machine. Raises ApiError 403."""
    require_admin(request, what)
    peer = request.client.host if request.client is not None else "localhost"
    if not app.settings.server.keys and not is_loopback(peer.removeprefix("::ffff:")):
        raise ApiError(
            403,
            "Loading and unloading by hand from another machine needs a key, and this server has none.",
            code="admin_needs_key",
            headers={"x-should-retry": "false"},
        )


async def _performed(work: Coroutine[None, None, None]) -> None:
    """Wait for the pool. Raises ApiError where it could not."""
    try:
        await work
    except PoolError as problem:
        raise from_failed(Failed(id="", code=problem.code, message=problem.message)) from None


def _item(app: Services, entry: CatalogEntry) -> dict[str, Any]:
    """OpenAI's fields, and the ones in which different clients look for the context."""
    info = app.pool.info(entry.name)
    context, trained = app.context_limit(entry), app.trained_context(entry)
    return {
        "id": entry.name,
        "object": "model",
        "created": app.started_unix,
        "owned_by": "onecard",
        "context_length": context,
        "max_model_len": context,
        "meta": {"n_ctx": context, "n_ctx_train": trained},
        "state": info.state.value,
        "unusable": info.unusable,
        "backend": entry.backend,
        "sampling": plain_sampling(entry.config, info.header),
        "remarks": list(info.header.remarks) if info.header is not None else [],
        "capabilities": app.capabilities(entry),
        "aliases": list(entry.aliases),
    }


def _for_anthropic(request: Request) -> bool:
    return speaks_anthropic(request.scope["path"], request.scope["headers"])


def _model_info(app: Services, entry: CatalogEntry) -> ModelInfo:
    context = app.context_limit(entry)
    return ModelInfo(id=entry.name, display_name=entry.name, max_input_tokens=context, max_tokens=context)


def _page(request: Request, models: list[ModelInfo]) -> ModelPage:
    """The models after `after_id` or before `before_id`, `limit` of them. Raises ApiError 400."""
    limit = whole_number(request, "limit", least=1, most=_LARGEST_PAGE) or _PAGE
    asked = request.query_params.multi_items()
    stages = {stage for name, value in asked if name in _LIFECYCLE for stage in value.split(",")}
    listed = models if not stages or "active" in stages else []
    after, before = (_place(request, name, listed) for name in ("after_id", "before_id"))
    start, end = (0 if after is None else after + 1), (len(listed) if before is None else before)
    page = listed[start:end]
    # A page before an id is the one right before it.
    page, rest = (page[-limit:], page[:-limit]) if before is not None else (page[:limit], page[limit:])
    ids = (page[0].id, page[-1].id) if page else (None, None)
    return ModelPage(data=page, has_more=bool(rest), first_id=ids[0], last_id=ids[1])


def _place(request: Request, name: str, models: list[ModelInfo]) -> int | None:
    """Where the model is that a query names; None where it names none. Raises ApiError 400."""
    if (wanted := request.query_params.get(name)) is None:
        return None
    places = [place for place, model in enumerate(models) if model.id == wanted]
    if not places:
        raise ApiError(400, f"Invalid '{name}': no model is called '{clip(wanted)}'.", param=name, code="invalid_value")
    return places[0]


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
