"""The last message of a conversation left open, so that the model goes on in the middle of it.

A mark behind its text shows where a template has put it; what the template writes from there on is cut off. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.engine import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MARKS = range(0x100000, 0x10FFFE)
"""Private use, and none of those that stand for control tokens (`backends.prompts.chat_template`)."""


class OpenTurn:
    """One conversation whose last message is open. Raises JobError where that message is no text of the assistant's."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        last = messages[-1] if messages else {}
        text = last.get("content")
        if last.get("role") != "assistant" or last.get("tool_calls") or not isinstance(text, str):
            raise JobError("invalid_value", "only an assistant's text can be continued", param="prompt")
        self.text = text
        self._mark = next(char for char in map(chr, _MARKS) if char not in text)
        self.messages = [*messages[:-1], {**last, "content": text + self._mark}]
        """To be rendered in place of the others."""

    def cut(self, rendered: str) -> str:
        """The prompt up to the end of the open message. Raises JobError where the template has changed its text."""
        before, mark, _ = rendered.rpartition(self._mark)
        if not mark or self._mark in before or not before.endswith(self.text.lstrip()):
            raise JobError(
                "invalid_value",
                "the last message cannot be continued: the model's chat template does not write its text as it is",
                param="prompt",
            )
        return before

    def reasons(self, marks: tuple[str, str]) -> bool:
        """The message ends inside a block of reasoning that it has opened itself."""
        opening, closing = (mark.strip() for mark in marks)
        return self.text.rfind(opening) > self.text.rfind(closing)
