"""What there is to prepare of a prompt, told before it is done."""

from __future__ import annotations

import hashlib

import pytest

from backends.border.clerk import SHORT_BYTES
from backends.messages import (
    ChatPrompt,
    Generate,
    MediaKind,
    MediaSegment,
    Medium,
    SegmentPrompt,
    TextPrompt,
    TextSegment,
)
from backends.registry import kind_of
from backends.weight import MEDIUM_BYTES, media_bytes, prompt_bytes


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_medium_of_few_bytes_waits_with_long_prompts(kind: MediaKind) -> None:
    small = Medium(kind, b"few", hashlib.sha256(b"few").hexdigest())
    words: list[dict[str, object]] = [{"role": "user", "content": "hello"}]
    shown = ChatPrompt(words, media=[small, small])

    assert prompt_bytes(ChatPrompt(words)) < SHORT_BYTES < prompt_bytes(shown)
    assert media_bytes(shown) == 2 * MEDIUM_BYTES
    assert prompt_bytes(shown) - media_bytes(shown) == prompt_bytes(ChatPrompt(words))
    assert prompt_bytes(SegmentPrompt([TextSegment("hello"), MediaSegment(small)])) == MEDIUM_BYTES + len("hello")


def test_a_large_medium_counts_as_what_it_is() -> None:
    large = Medium("image", bytes(3 * MEDIUM_BYTES), "0" * 64)
    assert media_bytes(ChatPrompt([], media=[large])) == 3 * MEDIUM_BYTES


def test_a_long_prediction_waits_with_long_prompts() -> None:
    job = Generate("a", TextPrompt("Go on."), max_tokens=8, prediction="word " * SHORT_BYTES)

    assert kind_of(job).weight(job) > SHORT_BYTES
