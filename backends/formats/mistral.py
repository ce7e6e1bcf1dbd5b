"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, and since 2025 `[TOOL_CALLS]name[ARGS]{...}`.

Its templates insist on call ids of nine letters and digits, so ids of other servers become such.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from backends.formats.base import Conversation, Format, Json, Rules, arguments_of, object_rules
from backends.formats.openings import BRACE, NAME, OBJECT, SPACE, WORD, Openings, maybe
from backends.formats.reading import Notation
from backends.messages import Function

OPEN, ARGS = "[TOOL_CALLS]", "[ARGS]"
_MORE = (SPACE, ",", SPACE, *OBJECT)
_ID = re.compile(r"[a-zA-Z0-9]{9}")


def _array(functions: Sequence[Function], parallel: bool) -> Rules:
    """One array of objects."""
    return object_rules(functions, 'another* GAP "]"', _MORE) if parallel else object_rules(functions, 'GAP "]"')


def _headed(functions: Sequence[Function], _parallel: bool) -> Rules:
    """A name and its arguments behind a mark each."""
    return Rules(bodies=[f"args{i}" for i in range(len(functions))], lines=arguments_of(functions))


def _new_id() -> str:
    return secrets.token_hex(5)[:9]


def _nine(name: str) -> str:
    return name if _ID.fullmatch(name) else hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:9]


def short_ids(messages: list[Json], tools: list[Json]) -> Conversation:
    """Calls and their results named by nine characters, the same for the same id."""
    shortened = []
    for message in messages:
        message = dict(message)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "id": _nine(call.get("id", ""))} for call in calls]
        if "tool_call_id" in message:
            message["tool_call_id"] = _nine(message["tool_call_id"])
        shortened.append(message)
    return shortened, tools


HEADED = Format(
    name="mistral-args",
    fits=lambda template: OPEN in template and ARGS in template,
    openings=Openings(marked=(OPEN, SPACE, NAME, maybe("[CALL_ID]", WORD), ARGS, SPACE, BRACE)),
    rules=_headed,
    notation=Notation(enclosed=False),
    marks=(OPEN, ARGS, "[CALL_ID]"),
    adapt=short_ids,
    new_id=_new_id,
)

FORMAT = Format(
    name="mistral",
    fits=lambda template: OPEN in template,
    openings=Openings(marked=(OPEN, SPACE, "[", SPACE, *OBJECT), more=_MORE),
    rules=_array,
    notation=Notation(gaps=("]",)),
    marks=(OPEN,),
    adapt=short_ids,
    new_id=_new_id,
)
