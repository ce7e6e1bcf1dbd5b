"""Where the media of a conversation stand in its rendered text: each has a character of its own until then. Pure.

Templates are given words alone. Most write the content of a message as it is, and what announces an image is the
model's own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from backends.engine import JobError
from backends.prompts.chat_template import strings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_PRIVATE_USE = range(0x100000, 0x10FFFE)
"""Those of the guard are others."""


class MediaPlaces:
    """The characters that stand for so many media of these messages. Raises JobError where none is left."""

    def __init__(self, messages: Sequence[dict[str, Any]], n_media: int) -> None:
        taken = set().union(*strings_of(list(messages))) if n_media else set()
        free = (char for char in map(chr, _PRIVATE_USE) if char not in taken)
        self._chars = [char for char, _ in zip(free, range(n_media), strict=False)]
        if len(self._chars) < n_media:
            message = "the messages hold every private-use character, so the places of media cannot be marked"
            raise JobError("invalid_value", message, param="prompt")
        self._any = re.compile(f"([{''.join(self._chars)}])") if self._chars else None

    def in_words(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with contents that are words, a medium's character where it stands."""
        return [
            {**message, "content": "\n".join(map(self._word, content))}
            if isinstance(content := message.get("content"), list)
            else message
            for message in messages
        ]

    def split(self, text: str) -> list[str | int]:
        """A piece of rendered text: words, and the numbers of media between them."""
        if self._any is None:
            return [text]
        cut = (self._chars.index(one) if one in self._chars else one for one in self._any.split(text))
        return [one for one in cut if one != ""]

    def _word(self, part: dict[str, Any]) -> str:
        return self._chars[part["medium"]] if part["type"] == "medium" else str(part["text"])
