"""`POST /v1/completions`: several prompts run as several jobs; their choices follow in the prompts' order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.errors import ApiError
from server.output.completions import Best, CompletionStream, CompletionWhole
from server.output.frame import Head, fingerprint
from server.output.shapes import TextCompletion
from server.routes.answering import AnswerPlan, answer, with_defaults
from server.routes.dependencies import App, parsed
from server.routes.described import Described, answers
from server.routes.services import new_id, served_headers
from server.schemas.completions import SURFACE, CompletionRequest, parse_completion

if TYPE_CHECKING:
    from backends.messages import Ready

router = APIRouter(route_class=Described, tags=["answers"])
PARAMS = {"prompt": "prompt", "n": "n"}


@router.post(SURFACE.path, responses=answers(TextCompletion, stream=TextCompletion))
async def completions(
    request: Request, app: App, asked: Annotated[CompletionRequest, Depends(parsed(SURFACE, parse_completion))]
) -> Response:
    """Continue one or more prompts, streamed or whole."""
    model = app.model(asked.model)
    for prompt in asked.prompt:
        if isinstance(prompt, str):
            app.refuse_too_long(model, len(prompt.encode()), param="prompt")
    asked, chosen = await with_defaults(app, model, asked)
    answer_id, created = new_id("cmpl-"), int(time.time())
    jobs = asked.jobs(answer_id)
    most = app.settings.server.max_queue
    if len(jobs) > most:
        # Retrying would not help, so this is no 429.
        raise ApiError(
            400,
            f"Invalid 'prompt': {len(jobs)} prompts are more than the {most} requests that may wait here at once.",
            param="prompt",
            code="array_above_max_length",
        )

    def head(ready: Ready | None) -> Head:
        return Head(answer_id, created, model.name, fingerprint(model.name, ready))

    plan = AnswerPlan(
        jobs=jobs,
        choices_per_job=asked.candidates_per_prompt,
        priority=asked.priority or 0,
        keep_alive_s=asked.keep_alive,
        streamed=bool(asked.stream),
        params=PARAMS,
        headers=served_headers(model, asked.ignored) | chosen,
        head=head,
        require=lambda ready: None,
        new_stream=lambda head, ready, started: CompletionStream(
            head, include_usage=asked.wants_usage, with_top=bool(asked.logprobs)
        ),
        new_whole=lambda ready, started: CompletionWhole(
            n=len(jobs) * asked.candidates_per_prompt,
            best=Best(asked.choices_per_prompt, asked.candidates_per_prompt),
            shows_logprobs=asked.logprobs is not None,
            with_top=bool(asked.logprobs),
        ),
    )
    return await answer(request, app, model, plan)
