"""`GET /v1/models`, `GET /v1/models/{id}`, and loading and unloading by hand. The GETs never load or keep a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from backends.messages import Failed
from server.errors import ApiError, from_failed
from server.output.frame import to_json
from server.pool.pool import PoolError
from server.routes.running import while_connected
from server.routes.services import Services, services
from server.settings.config import is_loopback

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

    from server.settings.catalog import CatalogEntry


async def list_models(request: Request) -> Response:
    """Every model of the catalogue."""
    app = services(request)
    data = [_item(app, entry) for entry in app.catalog.entries]
    return _json({"object": "list", "data": data})


async def get_model(request: Request) -> Response:
    """One model by name or alias."""
    app = services(request)
    return _json(_item(app, app.entry(request.path_params["id"])))


async def load_model(request: Request) -> Response:
    """Load a model and wait until it is ready."""
    app = services(request)
    _check_right(request, app)
    entry = app.entry(request.path_params["id"])
    await while_connected(request, _performed(app.pool.load(entry.name)))
    return _json(_item(app, entry))


async def unload_model(request: Request) -> Response:
    """Let a model finish what it runs, then unload it."""
    app = services(request)
    _check_right(request, app)
    entry = app.entry(request.path_params["id"])
    await while_connected(request, _performed(app.pool.unload(entry.name)))
    return _json(_item(app, entry))


def _check_right(request: Request, app: Services) -> None:
    """Who may move models: with keys whoever has one, without any only this machine. Raises ApiError 403."""
    peer = request.client.host if request.client is not None else "localhost"
    if not app.settings.server.api_keys and not is_loopback(peer.removeprefix("::ffff:")):
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
        "capabilities": app.capabilities(entry),
        "aliases": list(entry.aliases),
    }


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
