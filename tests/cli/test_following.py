"""A line on a terminal that is gone at the end, and work that is followed until it rests."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from typing import Any

import pytest

from server.cli.console import say
from server.cli.following import PassingLine, follow
from server.cli.quantize import _Console


def shown(monkeypatch: pytest.MonkeyPatch, write: Any) -> str:
    """What a terminal is sent."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        write()
    told = b""
    with contextlib.suppress(OSError):  # the end of what was written
        while part := os.read(ours, 4096):
            told += part
    os.close(ours)
    return told.decode()


def test_a_line_is_replaced_on_a_terminal_and_is_nothing_elsewhere(monkeypatch, capsys):
    def write() -> None:
        line = PassingLine()
        line.show("1 of 2 \x07")
        line.clear()

    assert shown(monkeypatch, write) == "\r\x1b[K1 of 2 \\x07\r\x1b[K"
    monkeypatch.undo()
    write()
    assert capsys.readouterr().err == ""


def test_a_line_of_quantize_that_stays_holds_no_escapes_that_can_be_read(monkeypatch):
    def write() -> None:
        console = _Console()
        console.progress("reading", 1, 2)
        console.line("read")

    assert shown(monkeypatch, write) == "\r\x1b[Kreading   50%\r\x1b[Kread\r\n"


@pytest.mark.parametrize(("own", "told"), [(True, "the next server"), (False, "the server")])
def test_who_stops_following_is_told_how_to_go_on(capsys, own: bool, told: str):
    def look() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow_to("b", look, own=own)
    said = capsys.readouterr().err
    assert said == f"at 1\n{told} goes on with it: `onecard batch b` follows it, --cancel ends it\n"


def test_work_is_followed_until_it_rests(capsys, monkeypatch):
    monkeypatch.setattr("server.cli.following._LOOK_S", 0.0)
    states = iter([{"at": "2"}, {"at": "end"}])
    assert follow_to("b", lambda: next(states)) == {"at": "end"}
    assert capsys.readouterr().err == "at 1\nat 2\nat end\n"


def follow_to(name: str, look: Any, *, own: bool = False) -> dict[str, Any]:
    return follow(
        {"at": "1"},
        look=look,
        rests=lambda work: work["at"] == "end",
        tell=lambda work: say(f"at {work['at']}"),
        line=PassingLine(),
        command=f"onecard batch {name}",
        own=own,
    )
