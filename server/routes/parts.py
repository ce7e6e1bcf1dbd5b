"""The parts of one job as an event stream, of the kinds whose events are objects of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.messages import Failed, Finished
from server.output.frame import DONE, Comments, to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import msgspec

    from backends.messages import Event
    from server.routes.running import Run


async def events(run: Run, told: Callable[[Event], msgspec.Struct | None]) -> AsyncIterator[bytes]:
    """What is `told` of each event, `[DONE]` behind the last, or OpenAI's error frame. Ends the run."""
    try:
        async for event in run.streams[0]:
            if isinstance(event, Failed):
                yield Comments().error(run.problem(event))
            elif (found := told(event)) is not None:
                yield b"data: " + to_json(found) + b"\n\n"
            if isinstance(event, Finished):
                yield DONE
    finally:
        run.cancel()
