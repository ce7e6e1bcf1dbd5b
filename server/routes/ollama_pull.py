"""`POST /api/pull`: a model fetched as `onecard pull` does it, told line by line as Ollama's clients read it.

Owns what a name means that is to be pulled, and who may; also what stands in for Ollama's other ways to change models.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from server.errors import ApiError, clip, model_not_found
from server.output.frame import to_json
from server.output.ollama import NDJSON, line
from server.output.ollama_shapes import OllamaPulled
from server.pulling import PullError
from server.reload import ReloadError
from server.routes.dependencies import App, parsed, require_operator
from server.routes.described import Described, answers
from server.routes.ollama import called, near, without_latest
from server.routes.running import while_connected
from server.routes.sse import SEND_TIMEOUT_S
from server.schemas.ollama_models import PULL, NamedBody, parse_named
from server.settings.references import LocateError, is_page, parse_hub_reference, parse_page
from server.settings.values import check_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

    from server.pulling import Step
    from server.routes.services import Services

router = APIRouter(route_class=Described, tags=["Ollama"], dependencies=[Depends(near)])
_SUCCESS: Final[Step] = {"status": "success"}
_MANIFEST: Final[Step] = {"status": "pulling manifest"}
_INSTEAD: Final[Mapping[str, str]] = {
    "delete": "`onecard rm NAME` removes a fetched model from the disk; the configuration says which are served.",
    "copy": "Another name of a model is one of its `aliases` in the configuration.",
    "create": "A model is a table [models.NAME] of the configuration; `onecard quantize` makes smaller files of it.",
    "push": "Nothing is sent anywhere from here; `hf upload` puts files into a repository of yours.",
    "blobs": "A model is a table [models.NAME] of the configuration, and its files stay where they are.",
}


def rather(path: str) -> str:
    """What to do instead of what Ollama has below `/api/` and this server has not."""
    known = "Of Ollama's API there are chat, generate, embed, embeddings, tags, show, ps, pull and version."
    return " ".join(part for part in (_INSTEAD.get(path.split("/")[2]), known) if part)


@router.post(PULL.path, responses=answers(OllamaPulled, stream=OllamaPulled, lines=NDJSON))
async def ollama_pull(
    request: Request, app: App, asked: Annotated[NamedBody, Depends(parsed(PULL, parse_named))]
) -> Response:
    """Fetch a model from the hub, and serve it from then on under the name that was asked for.

    A model that is here is told at once. The fetch ends with its client; what has come is kept for the next one.
    """
    wanted = await _wanted(app, asked.called)
    if wanted is not None:
        require_operator(request, app, "Pulling a model", "Pulling models")
    steps = _steps(app, asked.called or "", wanted)
    if asked.stream is False:
        return Response(await while_connected(request, _last(steps)), media_type="application/json")
    try:
        first = await while_connected(request, _first(steps))
    except PullError as problem:
        raise _refused(problem, began=False) from None
    return _Lines(first, steps, keepalive_s=app.settings.server.sse_keepalive_s)


class _Lines(EventSourceResponse):
    """One fetch as its client reads it; on every way out of here the client follows it no more."""

    def __init__(self, first: Step, rest: AsyncGenerator[Step], *, keepalive_s: float) -> None:
        super().__init__(
            _lines(first, rest),
            media_type=NDJSON,
            sep="\n",
            ping=keepalive_s,
            ping_message_factory=_sign_of_life,
            send_timeout=SEND_TIMEOUT_S,
        )
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()


def _sign_of_life() -> Any:
    """What every client reads over; bytes go out as they are."""
    return line(_MANIFEST)


async def _wanted(app: Services, name: str | None) -> str | None:
    """What is to be fetched, as `onecard pull` takes it; None where the model is here. Raises ApiError."""
    try:
        model = await app.looked_at(called(app, name))
    except ApiError as problem:
        if problem.status != 404 or name is None:
            raise
        return _reference(app, without_latest(name))
    if model.info.unusable is None:
        return None
    path = model.entry.config.path
    if parse_hub_reference(path) is not None and await asyncio.to_thread(model.entry.still_missing) is not None:
        return path
    raise ApiError(404, f"The model '{clip(model.name)}' cannot be used: {model.info.unusable}", code="model_not_found")


def _reference(app: Services, name: str) -> str:
    """A name that no model has, as far as it means a repository. Raises ApiError."""
    try:
        found = parse_page(check_name(name)) if is_page(name) else parse_hub_reference(check_name(name))
    except (LocateError, ValueError) as problem:
        raise ApiError(400, f"Invalid 'model': {problem}", param="model", code="invalid_value") from None
    if found is None:
        known = model_not_found(name, [entry.name for entry in app.entries])
        hint = "hint: onecard pulls from Hugging Face and not from Ollama's library: pull hf.co/OWNER/NAME:Q4_K_M"
        raise ApiError(404, f"{known.message} {hint}", code=known.code, param="model")
    return name


async def _steps(app: Services, name: str, wanted: str | None) -> AsyncGenerator[Step]:
    """What is told of a fetch, until the model is served. Raises PullError."""
    if wanted is None:
        yield _MANIFEST
        yield _SUCCESS
        return
    reference = ""
    async with aclosing(app.puller.follow(wanted)) as fetch:
        async for step in fetch:
            if "reference" not in step:
                yield step
            else:
                reference = step["reference"]
    yield {"status": "writing manifest"}
    if app.catalog.resolve(name) is None and app.catalog.resolve(without_latest(name)) is None:
        try:
            await app.reloader.serve_too(without_latest(name), reference)
        except ReloadError as problem:
            raise PullError(f"{reference} has come, and is not served: {problem}") from None
    await app.pool.look(called(app, name).name)
    yield _SUCCESS


async def _first(steps: AsyncIterator[Step]) -> Step:
    return await anext(steps)


async def _last(steps: AsyncIterator[Step]) -> bytes:
    """The whole answer. Raises ApiError."""
    told = []
    try:
        async for step in steps:
            told = [step]
    except PullError as problem:
        raise _refused(problem, began=bool(told)) from None
    return to_json(told[-1])


async def _lines(first: Step, rest: AsyncIterator[Step]) -> AsyncIterator[bytes]:
    """The answer as lines; what goes wrong is the last one."""
    yield line(first)
    try:
        async for step in rest:
            yield line(step)
    except PullError as problem:
        yield line({"error": problem.message})


def _refused(problem: PullError, *, began: bool) -> ApiError:
    if problem.is_usage:
        return ApiError(400, problem.message, param="model", code="invalid_value")
    if problem.is_unreachable:
        return ApiError(502, problem.message, type="server_error", code="hub_unreachable")
    return ApiError(422 if began else 404, problem.message, param="model", code="pull_failed")
