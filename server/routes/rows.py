"""The walk that embeddings and reranking share: jobs of a bounded size, a few at a time, their rows put together.

One small job stands beside a few pieces of a large request, never behind all of them.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from backends.kinds import EMBED
from backends.messages import Embed, Embedded, Failed, Finished, Part, Started
from server.output.frame import Usage, to_json
from server.output.vectors import Rows
from server.routes.answering import run_headers
from server.routes.running import Run, while_connected
from server.routes.services import ModelFacts, Services

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from backends.messages import Rerank
    from server.pool.stream import Stream

AT_ONCE: Final = 2
"""Jobs of one request that the worker has: it computes one while the next is tokenized."""
_MAX_LOGGED_BYTES: Final = 4096
_LOG = logging.getLogger("onecard.prompts")


@dataclass(frozen=True)
class Answered:
    """What the jobs of one request came to."""

    rows: Rows
    n_tokens: int
    headers: dict[str, str]


async def answered(
    request: Request,
    app: Services,
    model: ModelFacts,
    jobs: Sequence[Embed] | Sequence[Rerank],
    *,
    n_rows: int,
    priority: int | None,
    keep_alive_s: float | None,
) -> Answered:
    """Run the jobs and gather their rows. Raises ApiError for the first failure, or where the client hangs up."""
    if app.settings.logging.prompts:
        _log_inputs(request, jobs[0])
    run = Run([], 1, EMBED.params)
    todo: deque[Embed | Rerank] = deque(jobs)
    rows, usage = Rows(n_rows), Usage()

    def submit() -> Stream:
        stream = app.pool.submit(model.entry, todo.popleft(), priority=priority or 0, keep_alive_s=keep_alive_s)
        run.streams.append(stream)
        return stream

    async def work() -> Answered:
        running: deque[Stream] = deque()
        headers: dict[str, str] = {}
        for job in jobs:
            while todo and len(running) < AT_ONCE:
                running.append(submit())
            if not headers:
                headers = run_headers(run, await run.started())
            await _read(running.popleft(), run, rows, usage, first=job.first)
        return Answered(rows, usage.prompt_tokens, headers)

    try:
        return await while_connected(request, work())
    finally:
        run.cancel()


async def _read(stream: Stream, run: Run, rows: Rows, usage: Usage, *, first: int) -> None:
    async for event in stream:
        match event:
            case Embedded():
                rows.put(event, first)
            case Finished():
                usage.add(event)
            case Failed():
                raise run.problem(event)
            case Started() | Part():
                pass
            case _:
                assert_never(event)


def _log_inputs(request: Request, job: Embed | Rerank) -> None:
    """For the operator who asked for it: what the first job begins with."""
    texts = job.inputs[:1] if isinstance(job, Embed) else [job.query, *job.documents[:1]]
    text = to_json(texts)[:_MAX_LOGGED_BYTES].decode("utf-8", "ignore")
    _LOG.info("inputs id=%s job=%s first=%s", request.state.request_id, job.id, text)
