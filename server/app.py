"""Builds the one application: catalogue, metrics, pool, routes, and the gate around them. There are no globals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.accounts.book import Accounts, UsageBook
from server.batches.asking import Asking, PoolMachine
from server.batches.runner import BatchRunner
from server.batches.store import TABLES as BATCH_TABLES
from server.batches.store import BatchStore
from server.door.gate import REFUSAL, Gate
from server.door.rules import DoorRules
from server.door.spool import Spool, spool_folder
from server.error_bodies import dialect_of, error_body
from server.errors import ApiError, clip
from server.files.folder import DataFolder
from server.files.store import TABLE as FILE_TABLE
from server.files.store import FileStore
from server.history import History
from server.memory.learned import data_folder
from server.metrics import Metrics
from server.pool.events import Events
from server.pool.pool import Pool
from server.pulling import PULL, Puller
from server.reload import Reading, Reloader, serve_tuned
from server.routes.described import Described
from server.routes.files import PATH as FILES_PATH
from server.routes.files import UPLOAD_BYTES
from server.routes.media_fetch import fetch_media
from server.routes.ollama_pull import rather
from server.routes.services import Services
from server.routes.table import METRICS, ROUTERS
from server.schemas.problems import to_api_error
from server.settings.catalog import Catalog
from server.stored_images import StoredImages
from server.traces import open_traces
from server.tuning.bases import Bases
from server.tuning.results import Results
from server.tuning.runner import TuningRunner
from server.tuning.store import TABLES as TUNING_TABLES
from server.tuning.store import TuningStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pydantic_core import ErrorDetails
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from server.settings.config import Settings

TRAINER: Final = "backends.training"


def create_app(
    settings: Settings,
    *,
    pool: Pool | None = None,
    read: Callable[[], Reading] | None = None,
    config: Path | None = None,
    trainer: str = TRAINER,
) -> FastAPI:
    """The application over its own pool, or over a given one. Raises CatalogError and TracesError.

    `read` gives the configuration as it is when it is to be read again; without it only models' files are looked at.
    `config` is its file, for commands that run beside the server; `trainer` the module of the process that trains.
    """
    # sse-starlette would cut every stream when uvicorn begins to exit; here streams end when the pool ends their jobs.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    catalog = Catalog(settings)
    counted = Metrics(
        [entry.name for entry in catalog.entries],
        backends=sorted(catalog.backends),
        vllm_names=settings.metrics.vllm_names,
    )
    traces = open_traces(settings.traces)
    owned = pool if pool is not None else Pool(settings, catalog, counted, traces=traces)
    spool = Spool(settings.server.max_upload_bytes, spool_folder)
    told = Events()
    owned.on_change.append(told.on_change)
    named = [] if config is None else ["--config", str(config)]
    puller = Puller(settings.memory, command=[*PULL, *named], tell=owned.tell)
    owned.on_change.append(puller.on_change)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await owned.start()
        await usage.start()
        at_once = await asyncio.to_thread(lambda: folder.has_something)
        await runner.start(at_once=at_once)
        await tuning_runner.start(at_once=at_once)
        try:
            yield
        finally:
            await runner.close()
            await tuning_runner.close(settings.server.drain_s)
            await owned.close(settings.server.drain_s)
            await puller.close()
            await usage.close()
            folder.close()
            spool.close()
            if traces is not None:
                await traces.close()

    app = FastAPI(
        title="onecard",
        routes=_routes(with_metrics=settings.metrics.enabled),
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            RequestValidationError: _validation_error,
        },
    )
    app.state.catalog, app.state.pool, app.state.metrics = catalog, owned, counted
    history = History(
        max_count=settings.server.stored_responses,
        max_bytes=settings.server.stored_responses_bytes,
        ttl_s=settings.server.stored_responses_ttl_s,
    )
    usage = UsageBook(data_folder() / "usage.sqlite")
    folder = DataFolder(data_folder, (FILE_TABLE, BATCH_TABLES, TUNING_TABLES))
    files, batches = FileStore(folder, time.time), BatchStore(folder, time.time)
    door = DoorRules(settings, Accounts((counted.keys, usage), time.monotonic))

    def adopt(now: Settings) -> None:
        app.state.services = replace(app.state.services, settings=now)
        app.state.fetch_media = fetch_media if now.server.fetch_images else None

    reloader = Reloader(
        settings, read or (lambda: Reading(settings)), catalog=catalog, pool=owned, door=door, adopt=adopt
    )
    runner = BatchRunner(
        batches,
        files,
        PoolMachine(owned, catalog, time.monotonic),
        Asking(ExceptionMiddleware(AsyncExitStackMiddleware(app.router), app.exception_handlers), app, door.account_of),
        clock=time.time,
        count=counted.count_line,
    )
    tuning = TuningStore(folder, time.time)
    results = Results(tuning, files, serve_tuned(reloader), reloader.serve_no_more)
    bases = Bases(owned, catalog)
    tuning_runner = TuningRunner(
        tuning,
        results,
        files,
        owned.training,
        base_of=bases.find,
        machine=bases.machine,
        rules=lambda: reloader.settings.training,
        module=trainer,
        clock=time.time,
        counts=counted,
    )
    owned.foreground.on_job += [runner.make_way, tuning_runner.on_job]

    def stop_runners(what: str, _figures: object) -> None:
        if what == "draining":
            runner.stop()
            tuning_runner.stop()

    owned.on_change.append(stop_runners)
    app.state.services = Services(
        *(
            settings,
            catalog,
            owned,
            counted,
            told,
            history,
            StoredImages(),
            spool,
            reloader,
            puller,
            usage,
            files,
            batches,
            runner,
            tuning,
            tuning_runner,
            results,
        ),
        started_unix=int(time.time()),
    )
    app.state.fetch_media = fetch_media if settings.server.fetch_images else None
    app.add_middleware(Gate, rules=door, draining=lambda: owned.draining, uploads={FILES_PATH: UPLOAD_BYTES})
    return app


def _routes(*, with_metrics: bool) -> list[BaseRoute]:
    """Every route there is, each path closed to methods it has not: no later path that fits its name may take them.

    They lie in one row: FastAPI tries the routes of a router that is included in another twice.
    """
    routes: list[Described] = []
    for router in [*ROUTERS, METRICS] if with_metrics else ROUTERS:
        for route in router.routes:
            assert isinstance(route, Described), f"a router may not include another one: {route}"
            routes.append(route)
    closed: list[BaseRoute] = []
    for i, route in enumerate(routes):
        closed.append(route)
        if all(later.path != route.path for later in routes[i + 1 :]):
            methods = {method for other in routes if other.path == route.path for method in other.all_methods}
            closed.append(Route(route.path, _WrongMethod(sorted(methods)), methods=[]))
    return closed


class _WrongMethod:
    """What answers a method that a path has not."""

    def __init__(self, allowed: list[str]) -> None:
        self._allowed = ", ".join(allowed)

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise HTTPException(405, headers={"Allow": self._allowed})


async def _api_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    request.scope["state"][REFUSAL] = problem
    dialect = dialect_of(request.scope["path"], request.scope["headers"])
    body = error_body(problem, dialect=dialect, request_id=request.state.request_id)
    return Response(body, status_code=problem.status, media_type="application/json", headers=problem.headers)


async def _validation_error(request: Request, problem: Exception) -> Response:
    """What FastAPI itself finds wrong, of a route that leaves reading to it."""
    assert isinstance(problem, RequestValidationError)
    first: ErrorDetails = problem.errors()[0]
    first["loc"] = first["loc"][1:]  # the first step is `query`, `path` or `body`
    return await _api_error(request, to_api_error(first))


async def _http_error(request: Request, problem: Exception) -> Response:
    """The router's own refusals, in OpenAI's shape."""
    assert isinstance(problem, HTTPException)
    where = f"{clip(request.method)} {clip(request.scope['path'])}"
    if problem.status_code == 405:
        allowed = (problem.headers or {}).get("Allow", "")
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": f"{allowed}, OPTIONS"})
        told = f"Method not allowed: {where}. Use {allowed}."
        wrong = ApiError(405, told, code="method_not_allowed", headers={"Allow": allowed})
    elif problem.status_code == 404:
        told = f"Unknown request URL: {where}. {_rather(request)}"
        wrong = ApiError(404, told, code="unknown_url")
    else:
        wrong = ApiError(problem.status_code, "The request was refused.", headers=problem.headers)
    return await _api_error(request, wrong)


def _rather(request: Request) -> str:
    """What to do about a path that is unknown: the base URL is what is wrong most often."""
    known = {route.path for route in request.app.routes if isinstance(route, Route)}
    path = request.scope["path"]
    plain = path.rstrip("/")
    if plain.startswith("/v1/v1") and plain[3:] in known:
        return "The path says /v1 twice: leave it out of the base URL."
    if f"/v1{plain}" in known:
        return f"The base URL ends in /v1: ask for /v1{plain}."
    if plain in known:
        return f"Ask for {plain}, without the slash."
    if plain.startswith("/api/"):
        return rather(plain)
    return "GET /openapi.json lists what there is."
