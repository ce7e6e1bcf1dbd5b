"""The fields of a request that a chat can set: those of the server's own schema, checked by it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from server.cli.chat.files import path_of, read_file
from server.cli.chat.parsing import nearest
from server.cli.console import CliError, ExitCode
from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.cli.chat.conversation import Message

_OURS: Final = {
    "model", "messages", "stream", "stream_options", "n", "user", "logprobs", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls", "chat_template_kwargs", "max_completion_tokens",
}  # fmt: skip
"""What the chat itself decides, and what would change nothing that it shows."""
_MOST_SCHEMA_BYTES: Final = 1 << 20
_LONGEST_PATH: Final = 1024
FORMAT: Final = "format"
"""Short for `response_format`."""


def names() -> list[str]:
    """Every field that `/set` takes, sorted."""
    from server.schemas.chat import ChatRequest  # a question without any of them need not wait for pydantic
    from server.schemas.harmless import ChatHarmless
    from server.schemas.messages import ConversationFields

    others = {*_OURS, *ChatHarmless.model_fields, *ConversationFields.model_fields}
    return sorted([*(name for name in ChatRequest.model_fields if name not in others), FORMAT])


def require(name: str) -> None:
    """Refuse a field that there is not. Raises CliError."""
    if name not in names():
        like = nearest(name, names())
        hint = f"did you mean {like}?" if like else f"there are {', '.join(names())}"
        raise CliError(f"there is no field '{_short(name)}'. hint: {hint}", ExitCode.USAGE)


@dataclass
class Options:
    """What requests of this chat hold beside the model and the messages."""

    values: dict[str, Any] = field(default_factory=dict)
    think: bool | None = None
    """Whether the model shall reason first; None leaves it to the model."""

    def set(self, name: str, written: str) -> None:
        """Set a field to a value as a person writes it; `null` unsets it. Raises CliError."""
        require(name)
        if name == FORMAT:
            name, meant = "response_format", [response_format(written)]
        else:
            meant = _readings(written)
        if meant[0] is None:
            self.values.pop(name, None)
            return
        problem = ""
        for value in meant:
            try:
                _check({**self.values, name: value})
            except ApiError as error:
                problem = problem or error.message
            else:
                self.values[name] = value
                return
        raise CliError(problem, ExitCode.USAGE)

    def told(self, name: str | None, *, own: Mapping[str, Any]) -> list[str]:
        """A line for a field, or for each that has a value; `own` is what the model does where none is set."""
        if name is not None:
            require(name)
            wanted = ["response_format" if name == FORMAT else name]
        else:
            wanted = sorted({*self.values, *own})
        return [self._line(field, own) for field in wanted] or ["nothing is set. hint: /set temperature 0.2"]

    def _line(self, name: str, own: Mapping[str, Any]) -> str:
        if name in self.values:
            return f"{name}: {json.dumps(self.values[name], ensure_ascii=False)}"
        return f"{name}: {own[name]} (the model's own)" if name in own else f"{name}: not set"

    def body(self, model: str, messages: list[Message]) -> dict[str, Any]:
        """The request for a streamed answer."""
        thinking = {} if self.think is None else {"chat_template_kwargs": {"enable_thinking": self.think}}
        fixed = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        return {**self.values, **thinking, **fixed}


def response_format(written: str) -> dict[str, Any] | None:
    """`json`, `text`, a JSON schema, or a file that holds one, as the field of a request. Raises CliError."""
    word = written.strip()
    if word in ("null", "text", ""):
        return None
    if word == "json":
        return {"type": "json_object"}
    source, text = "the schema", word
    if not word.startswith("{"):
        source, text = word, _schema_of(path_of(word))
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise CliError(f"{_short(source)} is no JSON. hint: json, a JSON schema or its file", ExitCode.USAGE) from None
    if not isinstance(schema, dict):
        raise CliError(f"{_short(source)} is no JSON schema: it is no object", ExitCode.USAGE)
    if schema.get("type") in ("json_schema", "json_object"):
        return schema  # the field itself, as it stands in a request
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", str(schema.get("title") or "answer"))[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def _schema_of(path: Path) -> str:
    if len(str(path)) > _LONGEST_PATH or not path.is_file():
        raise CliError(f"'{_short(str(path))}' is neither json nor a file with a JSON schema", ExitCode.USAGE)
    return read_file(path, most_bytes=_MOST_SCHEMA_BYTES).decode("utf-8", "replace")


def _readings(written: str) -> list[Any]:
    """As JSON, and else as the text it is."""
    try:
        return [json.loads(written), written]
    except (ValueError, RecursionError):
        return [written]


def _check(values: dict[str, Any]) -> None:
    """Hold the fields against the schema of the server, together. Raises ApiError."""
    from server.schemas.chat import parse_meaning

    parse_meaning({"model": "any", "messages": [{"role": "user", "content": "any"}], **values})


def _short(text: str) -> str:
    return text if len(text) <= 64 else f"{text[:61]}..."
