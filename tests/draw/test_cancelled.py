"""How soon a cancelled image is not drawn any more: the step under way is the last."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from backends.border import wire
from backends.border.clerk import Clerk
from backends.border.link import Link
from backends.border.wire import command_decoder
from backends.diffusion.kind import Draw, Picture, Progressed
from backends.messages import Cancel, Event, Failed, Shutdown, Step, Submit
from demo.draw import PATH

pytestmark = pytest.mark.engine
pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
LAST = 3
"""The step under way when the cancellation comes."""


def test_a_cancelled_image_ends_with_the_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an image of many steps in a worker's loop, when its cancellation comes in the middle of one, then that step
    is the last that is computed, and the job ends as cancelled and without an image."""
    from backends.border.worker_main import run
    from tests.draw.loading import loaded

    engine, n_computed = loaded(PATH, options={"image_size": "64x64"}), 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        link = Link(theirs, command_decoder())
        clerk, painter = Clerk(link), type(engine._painter)
        noise = painter.noise

        def counted(*given: Any) -> Any:
            nonlocal n_computed
            n_computed += 1
            if n_computed == LAST:
                clerk._take(Cancel("a"))
            return noise(*given)

        monkeypatch.setattr(painter, "noise", counted)
        clerk.serve(engine)
        loop = threading.Thread(target=run, args=(engine, link, clerk), daemon=True)
        loop.start()
        clerk._take(Submit(Draw("a", "a red circle", 64, 64, seed=1, steps=50)))
        events: list[Event] = []
        while not any(isinstance(event, Failed) for event in events):
            for report in wire.receive(ours, wire.report_decoder()) or []:
                assert isinstance(report, Step)
                events += report.events
        clerk._take(Shutdown())
        loop.join(60)

    assert not loop.is_alive()
    assert n_computed == LAST
    assert [event.step for event in events if isinstance(event, Progressed)] == [*range(1, LAST + 1)]
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "cancelled"
    assert not any(isinstance(event, Picture) for event in events)
