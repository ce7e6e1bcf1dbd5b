"""What a request tells a router: its model, its conversation, and the answers that it goes on from. Pure.

A conversation is named by what all its turns begin with: the model, the system prompt and the first message of a user.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from server.cluster.facts import Ask
from server.errors import ApiError
from server.schemas.body import parse_object

BYTES_PER_TOKEN: Final = 4
_FORM_MODEL: Final = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,300})\r\n')
_ANSWER_ID: Final = re.compile(rb'"id": ?"((?:resp|msg)_[0-9A-Za-z]{1,64})"')
_HEAD_CHARS: Final = 2000
"""Of a prompt that is no conversation."""


@dataclass(frozen=True)
class Wanted:
    """A request as the edge sees it."""

    ask: Ask
    goes_on_from: str | None = None
    """An answer that one node holds, and no other can go on from."""


def wanted(body: bytes, *, default_model: str) -> Wanted:
    """Of a body in JSON or of a form; a body that is neither is the node's to refuse."""
    if not body.lstrip().startswith(b"{"):
        form = _FORM_MODEL.search(body[:1_000_000])
        return Wanted(Ask(form[1].decode(errors="replace") if form else default_model))
    try:
        fields = parse_object(body)
    except ApiError:
        return Wanted(Ask(default_model))
    model = fields.get("model")
    name = model if isinstance(model, str) else default_model
    return Wanted(Ask(name, _head(name, fields), len(body) // BYTES_PER_TOKEN), _earlier(fields))


def answer_id(first_bytes: bytes) -> str | None:
    """The id of an answer that later requests may name, from its first bytes."""
    found = _ANSWER_ID.search(first_bytes)
    return None if found is None else found[1].decode()


def _earlier(fields: dict[str, Any]) -> str | None:
    thread = fields.get("thread")
    inner = thread.get("previous_message_id") if isinstance(thread, dict) else None
    named = fields.get("previous_response_id") or inner
    return named if isinstance(named, str) else None


def _head(model: str, fields: dict[str, Any]) -> str | None:
    """None where nothing is said that a cache could hold."""
    key = fields.get("prompt_cache_key")
    if isinstance(key, str) and key:
        return _digest(model, key)
    said = fields.get("messages", fields.get("input"))
    if isinstance(said, list):
        first = next((at for at, one in enumerate(said) if isinstance(one, dict) and one.get("role") == "user"), -1)
        said = said[: first + 1] if first >= 0 else said[:1]
    elif said is None:
        prompt = fields.get("prompt")
        said = prompt[:_HEAD_CHARS] if isinstance(prompt, str) else prompt
    if not said:
        return None
    return _digest(model, [fields.get("system"), fields.get("instructions"), said])


def _digest(model: str, said: object) -> str:
    written = msgspec.json.encode([model, said], order="sorted")
    return hashlib.blake2b(written, digest_size=12).hexdigest()
