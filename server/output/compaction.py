"""A conversation summed up by its model, as one item that a client gives back in place of the conversation.

Pure: deltas in, bytes out; and the envelope that the summary travels in, which is no secret.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from backends.formats.pieces import Content
from server.errors import ApiError
from server.output.frame import to_json
from server.output.response_objects import CompactedResponse, CompactionItem
from server.output.responses import usage_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.messages import Delta
    from server.output.frame import Head, Usage
    from server.output.sorting import Sorter

ASK = (
    "Sum up the conversation so far for an assistant that goes on with it and sees nothing else of it: what the user "
    "wants, what was decided and found, names, figures and files, what is done and what is still to do. "
    "Answer with the summary alone."
)
_ENVELOPE = "onecard-compaction:"
_BEGINS = "Summary of the conversation so far:\n"
_WORDS = "\n\nThe user's latest messages, word for word:\n"
_MOST_CHARS = 4096
_SHARE = 4
"""The user's own words take at most a quarter of what they replace."""


def latest_words(turns: Sequence[dict[str, object]]) -> list[str]:
    """The user's latest messages as far as they are short; those that hold an earlier summary are none."""
    room = min(_MOST_CHARS, sum(len(_text(turn)) for turn in turns) // _SHARE)
    words: list[str] = []
    for turn in reversed(turns):
        text = _text(turn)
        if turn["role"] != "user" or text.startswith(_BEGINS):
            continue
        room -= len(text)
        if room < 0:
            break
        words.append(text)
    return words[::-1]


def _text(turn: Mapping[str, object]) -> str:
    """What a turn says in words."""
    content = turn.get("content") or ""
    return "\n".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content)


def sealed(summary: str, words: Sequence[str]) -> str:
    """Both as `encrypted_content`."""
    return _ENVELOPE + base64.b64encode(msgspec.json.encode([summary, list(words)])).decode("ascii")


def opened(content: str) -> str | None:
    """The message that stands for the conversation; None for an envelope of another server's."""
    if not content.startswith(_ENVELOPE):
        return None
    try:
        plain = base64.b64decode(content[len(_ENVELOPE) :], validate=True)
        summary, words = msgspec.json.decode(plain, type=tuple[str, list[str]])
    except (ValueError, msgspec.DecodeError):
        return None
    return _BEGINS + summary + (_WORDS + "\n".join(words) if words else "")


class Compaction:
    """The summary as it comes."""

    def __init__(self, sorter: Sorter, item_id: str, words: Sequence[str]) -> None:
        self._sorter = sorter
        self._item_id = item_id
        self._words = words
        self._texts: list[str] = []

    def add(self, event: Delta, _choice: int) -> None:
        """More of it; reasoning is no part of it."""
        for piece, _ in self._sorter.said(event):
            if isinstance(piece, Content):
                self._texts.append(piece.text)

    def body(self, head: Head, usage: Usage) -> bytes:
        """The whole answer. Raises ApiError 500 where the model has said nothing: that would lose the conversation."""
        summary = "".join(self._texts).strip()
        if self._sorter.finish_reason == "length":
            told = "The summary was cut off before its end, and half of one would lose the conversation."
            hint = " hint: keep the input as it is, or raise the model's context"
            raise ApiError(500, told + hint, type="server_error", code="server_error", headers=_NO_RETRY)
        if not summary:
            raise ApiError(
                500, "The model wrote no summary.", type="server_error", code="server_error", headers=_NO_RETRY
            )
        item = CompactionItem(id=self._item_id, encrypted_content=sealed(summary, self._words))
        whole = CompactedResponse(id=head.id, created_at=head.created, output=[item], usage=usage_object(usage))
        return to_json(whole)


_NO_RETRY = {"x-should-retry": "false"}
