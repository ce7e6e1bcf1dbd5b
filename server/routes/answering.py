"""The walk that all generating surfaces share: submit, wait for the start, answer as a stream or whole.

A route fills in an `AnswerPlan`; this file knows no field of any surface.
"""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec
from starlette.responses import Response

from backends.kinds import GENERATE
from backends.messages import BACKGROUND_PRIORITY, ChatPrompt
from server.asker import ASKER
from server.errors import ApiError
from server.output.frame import Comments, to_json
from server.routes.dependencies import check_wishes
from server.routes.running import (
    AnswerEncoder,
    Collector,
    Run,
    Voice,
    collect,
    sse_bytes,
    started_in_time,
    while_connected,
)
from server.routes.services import ModelFacts, Services
from server.routes.sse import SSE, StreamedAnswer
from server.routes.unread_media import readable
from server.schemas.fields import TokenChoice
from server.settings.sampling import SamplingSource, sampling_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from starlette.requests import Request

    from backends.messages import Generate, GeneratorFacts, Ready, Started
    from server.output.frame import Head, Usage
    from server.output.line_limits import LineLimits
    from server.pool.stream import Stream


log = logging.getLogger("onecard.prompts")
C = TypeVar("C", bound=TokenChoice)
SAMPLING_HEADER: Final = "x-onecard-sampling"
SYSTEM_HEADER: Final = "x-onecard-system"
"""`config` where the conversation has begun with the model's configured system message."""
_SOURCES: Final[tuple[SamplingSource, ...]] = ("config", "model")
_MAX_LOGGED_BYTES = 4096
_MAX_SESSION_CHARS = 256
SESSION_HEADERS = ("x-session-id", "session_id", "x-session-affinity")
"""What clients call their conversation; it only decides between cached prefixes that are equally long."""


class Whole(Collector, Protocol):
    """A collector that can write its answer."""

    def body(self, head: Head, usage: Usage) -> bytes:
        """The whole answer."""
        ...


def _as_it_is(problem: ApiError) -> ApiError:
    return problem


@dataclass(frozen=True)
class AnswerPlan:
    """One request as its surface understands it."""

    jobs: Sequence[Generate]
    choices_per_job: int
    priority: int
    keep_alive_s: float | None
    streamed: bool
    params: Mapping[str, str]
    headers: Mapping[str, str]
    head: Callable[[Ready | None], Head]
    require: Callable[[GeneratorFacts], None]
    """Refuses what the model cannot do. Raises ApiError."""
    new_stream: Callable[[Head, Ready | None, Started | None], AnswerEncoder] | None
    """None where an answer is never streamed."""
    new_whole: Callable[[Ready | None, Started | None], Whole]
    voice: Voice = field(default_factory=Comments)
    media_type: str = SSE
    """Of a stream."""
    limits: LineLimits | None = None
    session: str = ""
    """What the body calls the conversation."""
    on_submit: Callable[[Stream], None] | None = None
    """Given the first job's stream."""
    words: Callable[[ApiError], ApiError] = _as_it_is
    """Says a problem with the job in the surface's own words."""
    afterwards: Callable[[], AsyncGenerator[bytes]] | None = None
    """What is done after the model's last word, and the events of it."""

    def check(self, ready: Ready) -> None:
        """Refuse what the model cannot do. Raises ApiError."""
        if ready.generator is None:
            return
        try:
            self.require(ready.generator)
        except ApiError as problem:
            raise self.words(problem) from None


async def with_defaults(app: Services, model: ModelFacts, asked: C) -> tuple[C, dict[str, str]]:
    """The request with the model's defaults in the fields it leaves out, and the header that tells of them."""
    model = await app.looked_at(model)
    found = sampling_of(model.entry.config, model.header)
    used = {name: given for name, given in found.items() if getattr(asked, name, None) is None}
    if not used:
        return asked, {}
    told = {by: ",".join(f"{name}={value:g}" for name, (value, b) in used.items() if b == by) for by in _SOURCES}
    parts = [f"{values} ({by})" for by, values in told.items() if values]
    given = {name: value for name, (value, _) in used.items()}
    return asked.model_copy(update=given), {SAMPLING_HEADER: "; ".join(parts)}


async def answer(request: Request, app: Services, model: ModelFacts, plan: AnswerPlan) -> Response:
    """Run the plan. Raises ApiError for every failure before the headers."""
    check_wishes(request, priority=plan.priority, keep_alive_s=plan.keep_alive_s)
    model.refuse_other_kind(GENERATE)
    model = await app.looked_at(model) if model.adapter and model.ready is None else model
    model.refuse_bad_adapter()
    plan = await _readable(app, model, plan)
    if model.ready is not None:
        plan.check(model.ready)
    if app.settings.logging.prompts:
        _log_prompts(request, plan)
    jobs = [_marked(request, plan, model, job) for job in plan.jobs]
    if any(job.prompt != asked.prompt for job, asked in zip(jobs, plan.jobs, strict=True)):
        plan = replace(plan, headers={**plan.headers, SYSTEM_HEADER: "config"})
    streams = [
        app.pool.submit(model.entry, job, priority=plan.priority, keep_alive_s=plan.keep_alive_s) for job in jobs
    ]
    if plan.on_submit is not None:
        plan.on_submit(streams[0])
    run = Run(streams, plan.choices_per_job, plan.params, plan.limits, plan.words)
    try:
        if plan.streamed:
            return await _streamed(request, app, model, plan, run)
        return await _whole(request, app, model, plan, run)
    except BaseException:
        run.cancel()
        raise


async def _readable(app: Services, model: ModelFacts, plan: AnswerPlan) -> AnswerPlan:
    """The plan with prompts as the model reads them. Raises ApiError 400."""
    jobs, headers = [], dict(plan.headers)
    for job in plan.jobs:
        prompt, told = await readable(app, model, job.prompt, param=plan.params.get("prompt", "prompt"))
        jobs.append(job if prompt is job.prompt else msgspec.structs.replace(job, prompt=prompt))
        headers |= told
    return replace(plan, jobs=jobs, headers=headers)


def _marked(request: Request, plan: AnswerPlan, model: ModelFacts, job: Generate) -> Generate:
    """The job with what decides whose cached prefixes it shares, which job makes way, and the model's own settings.

    A client with another key must not learn from the clock what was computed before.
    """
    session = job.session or plan.session or next(filter(None, map(request.headers.get, SESSION_HEADERS)), "")
    marks = {"cache_domain": request.state.domain, "session": session[:_MAX_SESSION_CHARS]}
    marks["priority"] = plan.priority + key_priority()
    marks["adapter"] = model.adapter
    marks["json_whitespace"] = job.json_whitespace or model.entry.config.json_whitespace
    prompt = model.with_system(job.prompt) if isinstance(job.prompt, ChatPrompt) else job.prompt
    return msgspec.structs.replace(job, prompt=prompt, **marks)


def key_priority() -> int:
    """What the key of this request adds to its priority; for one that has time, how far it is behind all others."""
    asker = ASKER.get()
    if asker.background:
        return BACKGROUND_PRIORITY
    return 0 if asker.account is None else asker.account.limits.priority


def _log_prompts(request: Request, plan: AnswerPlan) -> None:
    """For the operator who asked for it: what the jobs begin with."""
    for job in plan.jobs:
        text = to_json(job.prompt)[:_MAX_LOGGED_BYTES].decode("utf-8", "ignore")
        log.info("prompt id=%s job=%s prompt=%s", request.state.request_id, job.id, text)


def _able(model: ModelFacts, plan: AnswerPlan, run: Run) -> Ready | None:
    """The figures of the model that runs it, checked where it was loaded meanwhile. Raises ApiError."""
    ready = run.streams[0].ready
    if ready is None or ready is model.ready:
        return model.ready
    plan.check(ready)
    return ready


async def _streamed(request: Request, app: Services, model: ModelFacts, plan: AnswerPlan, run: Run) -> Response:
    keepalive_s = app.settings.server.sse_keepalive_s
    started = await started_in_time(request, run, patience_s=keepalive_s)
    if started is not None:
        _able(model, plan, run)

    def make_encoder(first: Started | None) -> AnswerEncoder:
        ready = _able(model, plan, run)
        assert plan.new_stream is not None
        return plan.new_stream(plan.head(ready), ready, first)

    headers = {**plan.headers, **run_headers(run, started)}
    body = sse_bytes(run, make_encoder, plan.voice, afterwards=plan.afterwards)
    return StreamedAnswer(
        body,
        run,
        headers=headers,
        keepalive_s=keepalive_s,
        keep_alive=plan.voice.keep_alive,
        media_type=plan.media_type,
    )


async def _whole(request: Request, app: Services, model: ModelFacts, plan: AnswerPlan, run: Run) -> Response:
    async def work() -> Response:
        started = await run.started()
        ready = _able(model, plan, run)
        whole = plan.new_whole(ready, started)
        usage = await collect(run, whole)
        if plan.afterwards is not None:
            async with aclosing(plan.afterwards()) as further:
                async for _ in further:
                    pass
        headers = {**plan.headers, **run_headers(run, started)}
        return Response(whole.body(plan.head(ready), usage), media_type="application/json", headers=headers)

    return await while_connected(request, work())


def run_headers(run: Run, started: Started | None) -> dict[str, str]:
    """What is known about the run once it has started."""
    stream = run.streams[0]
    headers: dict[str, str] = {}
    if stream.queue_ms is not None:
        headers["x-onecard-queue-ms"] = f"{stream.queue_ms:.0f}"
    if stream.load_ms is not None:
        headers["x-onecard-load-ms"] = f"{stream.load_ms:.0f}"
    if started is not None:
        headers["x-onecard-cached-tokens"] = str(started.cached_tokens)
    if stream.gpu_layers is not None and stream.gpu_layers[0] < stream.gpu_layers[1]:
        headers["x-onecard-gpu-layers"] = f"{stream.gpu_layers[0]}/{stream.gpu_layers[1]}"
    for name, value in stream.kept_from_card.items():
        headers[f"x-onecard-{name.replace('_', '-')}"] = str(value)
    return headers
