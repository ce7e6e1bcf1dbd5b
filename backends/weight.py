"""How much there is to prepare of a prompt, told from its bytes before anything renders or tokenizes it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from backends.messages import (
    ChatPrompt,
    FimPrompt,
    MediaSegment,
    SegmentPrompt,
    TextPrompt,
    TextSegment,
    TokenPrompt,
    TokenSegment,
)

if TYPE_CHECKING:
    from backends.messages import Medium, Prompt, Segment

TOKEN_BYTES: Final = 4
"""What one token id counts for."""
MEDIUM_BYTES: Final = 64 * 1024
"""What an image or a sound counts for at least: few bytes may be many pixels, or be filled up to 30 s."""


def prompt_bytes(prompt: Prompt) -> int:
    """About so many bytes of text have to be read for it."""
    match prompt:
        case ChatPrompt():
            return text_bytes([prompt.messages, prompt.tools]) + media_bytes(prompt)
        case TextPrompt():
            return text_bytes(prompt.text)
        case FimPrompt():
            return text_bytes([prompt.prefix, prompt.suffix, [file.text for file in prompt.files]])
        case TokenPrompt():
            return len(prompt.tokens) * TOKEN_BYTES
        case SegmentPrompt():
            return sum(_segment_bytes(segment) for segment in prompt.segments)
        case _:
            assert_never(prompt)


def media_bytes(prompt: Prompt) -> int:
    """Of its images and sounds, as they were sent and no less than `MEDIUM_BYTES` each."""
    return sum(_medium_bytes(medium) for medium in prompt.media) if isinstance(prompt, ChatPrompt) else 0


def _medium_bytes(medium: Medium) -> int:
    return max(MEDIUM_BYTES, len(medium.data))


def _segment_bytes(segment: Segment) -> int:
    match segment:
        case TextSegment():
            return text_bytes(segment.text)
        case TokenSegment():
            return len(segment.tokens) * TOKEN_BYTES
        case MediaSegment():
            return _medium_bytes(segment.medium)
        case _:
            assert_never(segment)


def sure_bytes(prompt: Prompt) -> int:
    """Bytes that are in the rendered prompt for certain; templates may leave other things out, such as reasoning."""
    match prompt:
        case ChatPrompt():
            calls = [call.get("function") for message in prompt.messages for call in message.get("tool_calls", [])]
            said = [_texts(message.get("content")) for message in prompt.messages]
            return text_bytes([said, calls, prompt.tools])
        case TextPrompt():
            return text_bytes(prompt.text)
        case FimPrompt():
            return text_bytes([prompt.prefix, prompt.suffix])
        case TokenPrompt():
            return 0
        case SegmentPrompt():
            return sum(text_bytes(one.text) for one in prompt.segments if isinstance(one, TextSegment))
        case _:
            assert_never(prompt)


def _texts(content: object) -> object:
    """What a message says in words."""
    return [part.get("text") for part in content] if isinstance(content, list) else content


def text_bytes(value: object) -> int:
    """UTF-8 bytes of all strings in plain data, the names of objects among them."""
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            total += len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, dict):
            todo.extend(item)
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return total
