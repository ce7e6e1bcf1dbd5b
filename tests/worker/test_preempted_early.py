"""A preemption that comes while its job is still being prepared: one terminal event, and it says where to go on."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from backends.messages import Failed, Finished
from tests.worker.conftest import Starter, ask, opened


async def test_a_job_in_preparation_goes_on_elsewhere_from_where_it_came(start: Starter, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    worker, ear = await start()
    worker.submit(ask("new", f"!prepare-till {pipe}"))
    worker.submit(replace(ask("resumed", f"!prepare-till {pipe}"), resume=b"what it has said"))
    held = await opened(pipe)

    worker.preempt("resumed")
    worker.preempt("new")
    ends = [await ear.terminal(job_id) for job_id in ("resumed", "new")]
    os.close(held)
    worker.submit(ask("next", "hello"))
    await ear.terminal("next")

    assert [end.resume for end in ends if isinstance(end, Failed)] == [b"what it has said", b""]
    assert not ear.ended_twice()
    assert not ear.text("new") + ear.text("resumed")


async def test_one_that_comes_again_meanwhile_is_run_once_and_as_it_came_again(start: Starter, tmp_path: Path) -> None:
    """As where the growth that preempted it is given up: then the same worker gets it back."""
    os.mkfifo(pipe := tmp_path / "pipe")
    worker, ear = await start()
    worker.submit(ask("job", f"!prepare-till {pipe}"))
    held = await opened(pipe)

    worker.preempt("job")
    assert isinstance(await ear.terminal("job"), Failed)
    ear.events.clear()
    worker.submit(ask("job", "hello again"))
    os.close(held)
    await ear.terminal("job")
    worker.submit(ask("next", "done"))
    await ear.terminal("next")

    assert [type(end) for end in ear.terminals("job")] == [Finished]
    assert ear.text("job") == "echo: hello again"
