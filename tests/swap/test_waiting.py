"""What a waiting job is told: its place, an estimate, and how far its model's load has come."""

from __future__ import annotations

import pytest

from server.output.frame import Comments
from server.pool.stream import Waiting
from tests.pool.conftest import Maker, read, until


@pytest.mark.parametrize(
    ("waiting", "comment"),
    [
        (None, b": waiting\n\n"),
        (Waiting(2, 3.2, None), b": queued position=2 estimate_s=4\n\n"),
        (Waiting(1, 1.5, 0.4), b": loading chat 40% estimate_s=2\n\n"),
        (Waiting(1, 0.0, 0.0), b": loading chat 0% estimate_s=0\n\n"),
    ],
)
def test_the_comment_says_place_estimate_and_share(waiting: Waiting | None, comment: bytes) -> None:
    assert Comments().waiting("chat", waiting) == comment


async def test_jobs_in_the_queue_know_their_place(make: Maker) -> None:
    rig = await make(parallel=1)
    running = rig.submit("a", "!slow 20 10000")
    await running.first()
    first, second = rig.submit("a", "one"), rig.submit("a", "two")

    assert running.waiting is None
    assert [s.waiting.position for s in (first, second) if s.waiting is not None] == [1, 2]
    assert first.waiting is not None
    assert first.waiting.loaded is None
    assert first.waiting.estimate_s >= 0

    running.cancel()
    await read(first)
    await read(second)
    assert first.waiting is None


async def test_a_load_under_way_tells_how_far_it_is(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "slow 1")
    stream = rig.submit("a", "hello")
    seen: list[Waiting] = []

    def half() -> bool:
        waiting = stream.waiting
        if waiting is not None and waiting.loaded is not None:
            seen.append(waiting)
        return bool(seen) and (seen[-1].loaded or 0) >= 0.5

    await until(half)
    assert seen[0].position == 1
    assert 0 <= seen[-1].estimate_s < 5
    await read(stream)
    assert stream.waiting is None
