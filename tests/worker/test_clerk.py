"""What a worker says when an answer cannot be sent."""

from __future__ import annotations

import socket

import pytest

from backends.border import wire
from backends.border.clerk import Clerk
from backends.border.link import Link
from backends.border.wire import command_decoder
from backends.messages import Failed, Finished, Step, Tokenized


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
