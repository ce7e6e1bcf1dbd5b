"""Calls and their results belong together: a request for an answer has answered every call, and no other.

OpenAI, Anthropic and strict templates insist on it. Each surface says what is wrong in its provider's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from server.errors import ApiError, clip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from server.schemas.messages import Message

_MOST_NAMED = 8


class Turn(NamedTuple):
    """What one chat message has to do with calls; `place` is where the client wrote it."""

    place: int
    role: str
    calls: Sequence[str] = ()
    """Ids of the calls it makes."""
    answers: str | None = None
    """The id of the call it answers."""


class Unmatched(NamedTuple):
    """The first thing that is wrong: `unanswered` calls of the turn at `place`, or the `result` there answers none."""

    place: int
    unanswered: Sequence[str] = ()
    result: str = ""
    no_calls: bool = False
    """No call was made right before the result."""


def first_unmatched(turns: Iterable[Turn], *, open_end: bool = False) -> Unmatched | None:
    """Results have to follow the turn with their calls at once, in any order; None where all do.

    Neighbouring turns of the assistant are one, a late system message is none. `open_end`: no answer is asked for, so
    the last calls may wait.
    """
    made: set[str] = set()
    open_calls: dict[str, int] = {}
    last = ""
    for turn in turns:
        if turn.role in ("system", "developer"):
            continue
        if turn.role == "tool":
            if turn.answers not in made:
                return Unmatched(turn.place, result=turn.answers or "", no_calls=not made)
            open_calls.pop(turn.answers, None)
        elif not (last == turn.role == "assistant"):
            if open_calls:
                return _unanswered(open_calls)
            made = set()
        made.update(turn.calls)
        open_calls.update(dict.fromkeys(turn.calls, turn.place))
        last = turn.role
    return _unanswered(open_calls) if open_calls and not open_end else None


def _unanswered(calls: Mapping[str, int]) -> Unmatched:
    return Unmatched(next(iter(calls.values())), unanswered=list(calls))


def check_chat(messages: Sequence[Message], *, open_end: bool) -> None:
    """Raises ApiError 400 in OpenAI's words."""
    turns = (
        Turn(i, message.role, [call.id for call in message.tool_calls or []], message.tool_call_id)
        for i, message in enumerate(messages)
    )
    found = first_unmatched(turns, open_end=open_end)
    if found is None:
        return
    at = f"messages[{found.place}]"
    if found.unanswered:
        raise ApiError(
            400,
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {_names(found.unanswered)}",
            param=f"{at}.tool_calls",
        )
    if found.no_calls:
        raise ApiError(
            400,
            "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
            param=f"{at}.role",
        )
    raise ApiError(
        400,
        f"Invalid parameter: 'tool_call_id' of '{clip(found.result)}' not found in 'tool_calls' of previous message.",
        param=f"{at}.tool_call_id",
    )


def check_blocks(turns: Iterable[Turn], *, n_held: int = 0) -> None:
    """Raises ApiError 400 in Anthropic's words; the first `n_held` messages are not the client's to count."""
    found = first_unmatched(turns)
    if found is None:
        return
    if found.unanswered:
        sentence = (
            f"`tool_use` ids were found without `tool_result` blocks immediately after: {_names(found.unanswered)}. "
            "Each `tool_use` block must have a corresponding `tool_result` block in the next message."
        )
    else:
        sentence = (
            f"unexpected `tool_use_id` found in `tool_result` blocks: {clip(found.result)}. "
            "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
        )
    place = max(0, found.place - n_held)
    raise ApiError(400, f"messages.{place}: {sentence}", param=f"messages[{place}].content")


def check_items(turns: Sequence[dict[str, Any]]) -> None:
    """Raises ApiError 400 in OpenAI's words for items, which may lie apart: their ids alone have to match."""
    made: set[str] = set()
    answered: set[str] = set()
    for turn in turns:
        made.update(call["id"] for call in turn.get("tool_calls") or [])
        if turn["role"] == "tool":
            if turn["tool_call_id"] not in made:
                name = clip(turn["tool_call_id"])
                raise ApiError(400, f"No tool call found for function call output with call_id {name}.", param="input")
            answered.add(turn["tool_call_id"])
    if unanswered := made - answered:
        raise ApiError(400, f"No tool output found for function call {clip(min(unanswered))}.", param="input")


def _names(ids: Sequence[str]) -> str:
    shown = ", ".join(clip(name) for name in ids[:_MOST_NAMED])
    return shown + (f" and {len(ids) - _MOST_NAMED} more" if len(ids) > _MOST_NAMED else "")
