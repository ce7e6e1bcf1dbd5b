"""The log's lines."""

import json
import logging
import sys

import pytest

from server.cli.logs import JsonLines, TextLines


def record(message, *arguments, exc_info=None):
    return logging.LogRecord("onecard.pool", logging.INFO, "x.py", 1, message, arguments, exc_info)


def test_no_client_can_forge_a_line():
    forged = record("rejected model=%s", "a\nb\x1b[31m\u202e\ud800")
    for formatter in (TextLines(), JsonLines()):
        line = formatter.format(forged)
        assert len(line.splitlines()) == 1
        assert line.isprintable()
        line.encode()


def test_json_lines_carry_fields():
    line = json.loads(JsonLines().format(record('loaded model="my chat" seconds=0.5 layers=29/33 pid=7')))
    del line["time"]
    expected = {"event": "loaded", "model": "my chat", "seconds": 0.5, "layers": "29/33", "pid": 7}
    assert line == {**expected, "level": "info", "logger": "onecard.pool"}


def test_a_library_that_quotes_our_files_tells_no_absolute_path():
    line = TextLines().format(record(f"Task exception was never retrieved coro=<f() at {__file__}:3>"))
    assert "coro=<f() at tests/cli/test_logs.py:3>" in line


def test_a_field_cannot_replace_the_level():
    line = json.loads(JsonLines().format(record("x level=debug time=0")))
    assert line["level"] == "info"
    assert line["time"] != 0


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_an_exception_is_its_type_and_place(formatter):
    try:
        raise ValueError("a secret prompt")
    except ValueError:
        line = formatter.format(record("failed", exc_info=sys.exc_info()))
    assert "ValueError" in line
    assert "tests/cli/test_logs.py:" in line
    assert "secret" not in line
    assert "Traceback" not in line
