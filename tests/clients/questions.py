"""What every client asks the demo model and the one that sees, and what they have to answer."""

from __future__ import annotations

import base64
import os
import struct
import zlib

MODEL = os.environ["ONECARD_MODEL"]
SEER = os.environ["ONECARD_SEER"]
SQUARE = "What colour is the square?"
RED = "The square is red."
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
WEATHER = "What is the weather in Paris?"
REPORT = '{"condition": "sunny", "temperature": 21}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


def check(answer: dict) -> None:
    """Whether an answer has the schema's shape."""
    assert answer.keys() == {"city", "large"}, answer
    assert isinstance(answer["city"], str), answer
    assert isinstance(answer["large"], bool), answer


def done(step: str) -> None:
    print(f"ok {step}", flush=True)


def _picture() -> bytes:
    """A red square on white, as PNG."""
    red, white = bytes((220, 30, 30)), bytes((245, 245, 245))
    rows = (b"".join(red if 11 <= x < 37 and 11 <= y < 37 else white for x in range(48)) for y in range(48))
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    size = struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PICTURE = base64.b64encode(_picture()).decode()
URL = f"data:image/png;base64,{PICTURE}"
