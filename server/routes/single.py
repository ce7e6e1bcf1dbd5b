"""The walk of jobs whose answer is one part: submitted, waited for, cancelled when the client hangs up."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, assert_never

from backends.messages import Failed, Finished, Part, Started
from server.routes.running import Run, while_connected

if TYPE_CHECKING:
    from starlette.requests import Request

P = TypeVar("P", bound=Part)


async def single(request: Request, run: Run, kind: type[P]) -> P:
    """The one part of this type that the run's job delivers. Raises ApiError."""

    async def work() -> P:
        async for event in run.streams[0]:
            match event:
                case Part():
                    if isinstance(event, kind):
                        return event
                case Failed():
                    raise run.problem(event)
                case Started() | Finished():
                    pass
                case _:
                    assert_never(event)
        raise RuntimeError("a job ended without its answer")

    try:
        return await while_connected(request, work())
    finally:
        run.cancel()
