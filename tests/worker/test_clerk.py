"""What a worker says when an answer cannot be sent, and for what its step makes way."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable

import pytest

from backends.border import wire
from backends.border.clerk import Clerk
from backends.border.link import Link
from backends.border.wire import command_decoder
from backends.messages import (
    BACKGROUND_PRIORITY,
    Command,
    Failed,
    Finished,
    Generate,
    Keep,
    Preempt,
    Step,
    Submit,
    TextPrompt,
    Tokenized,
)
from tests.fakes.engine import FakeEngine
from tests.specs import spec_of


def test_an_answer_too_large_for_a_frame_fails_its_job_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 500)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        Clerk(Link(theirs, command_decoder()))._answer([Tokenized("t", [7] * 1000), Finished("t")])

        (report,) = wire.receive(ours, wire.report_decoder()) or []

    assert isinstance(report, Step)
    (failed,) = report.events
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code) == ("t", "invalid_value")
    assert "WireError" in capfd.readouterr().err


class Noting(FakeEngine):
    """Tells what its step was to make way for."""

    def __init__(self) -> None:
        super().__init__(spec_of("fake", "fake", ""), 0, 0)
        self.made_way: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.waits = lambda: False

    def attend(self, waits: Callable[[], bool]) -> None:
        self.waits = waits

    def make_way(self) -> None:
        self.made_way.put(self.waits())


def submitted(priority: int = 0) -> Submit:
    return Submit(Generate(f"at {priority}", TextPrompt("a"), max_tokens=1, priority=priority))


@pytest.mark.parametrize("command", [submitted(), Keep(0), Preempt("another")])
def test_a_step_makes_way_for_what_waits_and_not_for_what_has_time(command: Command) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        clerk, engine = Clerk(Link(theirs, command_decoder())), Noting()
        clerk.serve(engine)

        clerk._take(submitted(BACKGROUND_PRIORITY))
        clerk.inbox.get(timeout=5)
        clerk._take(command)

        assert engine.made_way.get(timeout=5), "it waits already, when the engine is told"
        assert engine.made_way.empty()
