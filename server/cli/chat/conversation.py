"""What has been said so far, as the messages of a request; kept in files as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from server.cli.chat.files import read_file
from server.cli.console import CliError
from server.cli.output import naming

Message = dict[str, Any]
_MOST_BYTES: Final = 64 << 20
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")


@dataclass
class Conversation:
    """Messages, the system message first. One that ends with the user's has a question that waits for its answer."""

    messages: list[Message] = field(default_factory=list)

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *rest]

    @property
    def waits(self) -> bool:
        """Whether the last question has no answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "user"

    def ask(self, content: str | list[dict[str, Any]]) -> None:
        """A question; it takes the place of one that got no answer."""
        rest = self.messages[:-1] if self.waits else self.messages
        self.messages = [*rest, {"role": "user", "content": content}]

    def answer(self, text: str) -> None:
        """What the model said, also where it was stopped; no text is no answer."""
        if text:
            self.messages = [*self.messages, {"role": "assistant", "content": text}]

    def again(self) -> bool:
        """Take the last answer back; whether there is a question to be asked again."""
        last = next((at for at in reversed(range(len(self.messages))) if self.messages[at]["role"] == "user"), None)
        if last is None:
            return False
        self.messages = self.messages[: last + 1]
        return True

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = self.messages[:1] if self.system is not None else []

    def save(self, path: Path) -> None:
        """Write it, whole or not at all, for this user only. Raises CliError and OSError."""
        if path.exists():
            _read(path)  # what is no conversation is not written over
        target = path.resolve()
        with naming(path):
            number, new = tempfile.mkstemp(dir=target.parent, prefix=".onecard-chat-")
            try:
                with os.fdopen(number, "w", encoding="utf-8") as file:
                    json.dump(self.messages, file, ensure_ascii=False, indent=1)
                Path(new).replace(target)
            except BaseException:
                Path(new).unlink(missing_ok=True)
                raise


def loaded(path: Path) -> Conversation:
    """A conversation from a file. Raises CliError and OSError."""
    return Conversation(_read(path))


def _read(path: Path) -> list[Message]:
    try:
        document = json.loads(read_file(path, most_bytes=_MOST_BYTES))
    except (ValueError, RecursionError):
        raise CliError(f"{path} holds no conversation: it is no JSON") from None
    messages = document.get("messages") if isinstance(document, dict) else document
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise CliError(f"{path} holds no conversation. hint: a list of messages, each with role and content")
    return messages


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        return False
    content = message.get("content")
    return isinstance(content, str | list) or (content is None and message["role"] == "assistant")
