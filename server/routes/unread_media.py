"""Media that a model does not read: those that are sent now are refused, those of tools and earlier turns become words.

An agent's session goes on where a tool has shown an image to a model without eyes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from backends.messages import SENSES, ChatPrompt
from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Set
    from typing import TypeVar

    from backends.messages import MediaKind, Medium, Prompt
    from server.routes.services import ModelFacts, Services

    P = TypeVar("P", bound=Prompt)

NOT_SHOWN_HEADER = "x-onecard-not-shown"
_WORDS: dict[MediaKind, str] = {"image": "An image", "audio": "A sound"}


async def readable(app: Services, model: ModelFacts, prompt: P, *, param: str) -> tuple[P, dict[str, str]]:
    """The prompt as the model reads it, and the header that tells what it is not shown. Raises ApiError 400.

    A model of which nothing is known yet is looked at.
    """
    if not isinstance(prompt, ChatPrompt) or not prompt.media:
        return prompt, {}
    model = await app.looked_at(model)
    if model.ready is None and model.header is None:
        return prompt, {}
    unread = {medium.kind for medium in prompt.media if SENSES[medium.kind] not in model.capabilities}
    if not unread:
        return prompt, {}
    if (kind := next((kind for kind in sorted(unread) if _is_sent_now(prompt, kind)), None)) is not None:
        raise _refusal(app, model, kind, param)
    kept = [medium for medium in prompt.media if medium.kind not in unread]
    messages = [_in_words(message, prompt.media, kept, unread) for message in prompt.messages]
    told = f"{len(prompt.media) - len(kept)} {' and '.join(sorted(unread))}"
    return msgspec.structs.replace(prompt, messages=messages, media=kept), {NOT_SHOWN_HEADER: told}


def _is_sent_now(prompt: ChatPrompt, kind: MediaKind) -> bool:
    """Whether a user's message behind the last answer holds one."""
    roles = [message["role"] for message in prompt.messages]
    answered = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    return any(
        prompt.media[part["medium"]].kind == kind
        for message in prompt.messages[answered:]
        if message["role"] != "tool" and isinstance(message.get("content"), list)
        for part in message["content"]
        if part["type"] == "medium"
    )


def _refusal(app: Services, model: ModelFacts, kind: MediaKind, param: str) -> ApiError:
    sense = SENSES[kind]
    able = [entry.name for entry in app.entries if sense in app.facts(entry).capabilities]
    hint = f"name a model that does: {', '.join(able)}" if able else "no configured model does; send its text"
    told = f"Invalid '{param}': the model '{model.name}' takes no parts of type {kind}. hint: {hint}"
    return ApiError(400, told, param=param, code="unsupported_value")


def _in_words(
    message: dict[str, Any], media: list[Medium], kept: list[Medium], unread: Set[MediaKind]
) -> dict[str, Any]:
    """A message without media that are not read; it is words alone where no other is in it."""
    if not isinstance(content := message.get("content"), list):
        return message
    parts = []
    for part in content:
        if part["type"] != "medium":
            parts.append(part)
        elif (medium := media[part["medium"]]).kind in unread:
            told = f"[{_WORDS[medium.kind]} stands here ({len(medium.data)} bytes). This model cannot be shown it.]"
            parts.append({"type": "text", "text": told})
        else:
            parts.append({**part, "medium": kept.index(medium)})
    if all(part["type"] == "text" for part in parts):
        return {**message, "content": "\n".join(part["text"] for part in parts)}
    return {**message, "content": parts}
