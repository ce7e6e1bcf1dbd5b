"""No text of an error holds a place in memory, whoever wrote it."""

from __future__ import annotations

import pytest

from backends.messages import Failed
from server.errors import from_failed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("the chat template failed: <Macro object at 0x7f3a2c1b9d50> is no text", "<Macro object> is no text"),
        ("ggml_abort (0x7ffd12345678) in step", "ggml_abort in step"),
        ("<bound method X of <Y object at 0x55d0c0ffee00>>", "<bound method X of <Y object>>"),
        ("token 0x0A is no text", "token 0x0A is no text"),
    ],
)
def test_addresses_are_left_out(text: str, told: str) -> None:
    assert from_failed(Failed(id="x", code="template_error", message=text)).message.endswith(told)
