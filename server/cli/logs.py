"""The log: one line per event on stderr, as text or JSON, without tracebacks, prompts or keys."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings.sections import LoggingSection

_FIELD = re.compile(r'(?:^|(?<=\s))([A-Za-z_][\w.]*)=("(?:[^"\\]|\\.)*"|\S*)')
_ROOT = Path(__file__).resolve().parents[2]


def configure_logging(section: LoggingSection) -> None:
    """Send everything this process logs to stderr in the chosen form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if section.format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    level = section.level.upper()
    for name in ("onecard", "server", "backends"):
        logging.getLogger(name).setLevel(level)
    # What a client sends wrongly is its answer's matter, and the parser's words are no event of ours.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # `server.door.http1` says the same with the reason.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")


def one_line(text: str) -> str:
    """Text whose control characters, line ends and lone surrogates are escaped, so that no text can forge a line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _place(record: logging.LogRecord) -> str:
    """Type of the exception and where it was raised; its text may quote a prompt, so it stays out."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    kind, _, trace = record.exc_info
    at = ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        name = str(file.relative_to(_ROOT)) if file.is_relative_to(_ROOT) else file.name
        at, trace = f"{name}:{trace.tb_lineno}", trace.tb_next
    return f" error={kind.__name__} at={at}"


def _message(record: logging.LogRecord) -> str:
    """The event on one line; libraries quote where our files lie, which no reader needs."""
    return one_line(record.getMessage() + _place(record)).replace(f"{_ROOT}/", "")


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextLines(logging.Formatter):
    """`2026-11-20T16:00:00.000Z info onecard.pool loaded model=demo load_s=0.4`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of text."""
        return f"{_time(record)} {record.levelname.lower()} {record.name} {_message(record)}"


class JsonLines(logging.Formatter):
    """The same event as a JSON object; `key=value` pairs of the message become fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        message = _message(record)
        fields = {key: _value(value) for key, value in _FIELD.findall(message)}
        event = " ".join(_FIELD.sub("", message).split())
        head = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "event": event}
        return json.dumps({**fields, **head})


def _value(text: str) -> str | int | float:
    if text.startswith('"'):
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    for number in (int, float):
        if re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII):
            try:
                return number(text)
            except ValueError:
                continue
    return text
