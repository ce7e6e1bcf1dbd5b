"""What a failed job looks like: each code has its status, and no text holds a place in memory."""

from __future__ import annotations

from typing import get_args

import pytest

from backends.messages import ErrorCode, Failed
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


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_reason_a_job_can_fail_for_has_its_status(code: ErrorCode) -> None:
    assert 400 <= from_failed(Failed(id="x", code=code, message="no")).status < 600
