"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, and since 2025 `[TOOL_CALLS]name[ARGS]{...}`.

Its templates insist on call ids of nine letters and digits, so ids of other servers become such.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from backends.formats.base import Conversation, Format, Json, Rules, inline, named_objects, parameters, quoted
from backends.formats.reading import Notation, header
from backends.messages import Function

OPEN, ARGS = "[TOOL_CALLS]", "[ARGS]"
_ID = re.compile(r"[a-zA-Z0-9]{9}")


def _array(functions: Sequence[Function], parallel: bool) -> Rules:
    """One array of objects."""
    call = named_objects(functions)
    definitions = call.pop("$defs")
    schema = {"$defs": definitions, "type": "array", "items": call, "minItems": 1}
    return Rules(trigger=OPEN, calls=f"calls: GAP {inline(schema if parallel else {**schema, 'maxItems': 1})}\n")


def _headed(functions: Sequence[Function], parallel: bool) -> Rules:
    """A name and its arguments behind a mark each."""
    calls = [
        f"call{i}: {quoted(function.name + ARGS)} {inline(parameters(function))}"
        for i, function in enumerate(functions)
    ]
    more = f"({quoted(OPEN)} call)*" if parallel else ""
    either = " | ".join(f"call{i}" for i in range(len(functions)))
    return Rules(trigger=OPEN, calls="\n".join([f"calls: call {more}", f"call: {either}", *calls, ""]))


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
    rules=_headed,
    notation=Notation(
        begins=(OPEN,),
        opening=header(r"(?P<name>[^\[{]{1,256}?)(?:\[CALL_ID\][^\[{]{0,64})?\[ARGS\]"),
        enclosed=False,
    ),
    marks=(OPEN, ARGS, "[CALL_ID]"),
    adapt=short_ids,
    new_id=_new_id,
)

FORMAT = Format(
    name="mistral",
    fits=lambda template: OPEN in template,
    rules=_array,
    notation=Notation(begins=(OPEN,), gaps=("[", ",", "]"), many=True),
    marks=(OPEN,),
    adapt=short_ids,
    new_id=_new_id,
)
