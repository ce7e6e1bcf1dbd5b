"""What the SDKs' request types hold today: `sdk_requests.json` is what of them was looked at and decided.

python -m tests.schemas.requests        writes it anew, once every new field has been decided
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import typing_extensions
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat
from openai.types.responses import input_token_count_params, response_compact_params, response_create_params

DECIDED = Path(__file__).with_name("sdk_requests.json")
TYPES: dict[str, tuple[Any, ...]] = {
    "/v1/chat/completions": (chat.CompletionCreateParamsNonStreaming, chat.CompletionCreateParamsStreaming),
    "/v1/completions": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "/v1/embeddings": (embedding_create_params.EmbeddingCreateParams,),
    "/v1/responses": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
    "/v1/responses/compact": (response_compact_params.ResponseCompactParams,),
    "/v1/responses/input_tokens": (input_token_count_params.InputTokenCountParams,),
    "/v1/messages": (
        message_create_params.MessageCreateParamsNonStreaming,
        message_create_params.MessageCreateParamsStreaming,
        beta_create.MessageCreateParamsNonStreaming,
        beta_create.MessageCreateParamsStreaming,
    ),
    "/v1/messages/count_tokens": (
        message_count_tokens_params.MessageCountTokensParams,
        beta_count.MessageCountTokensParams,
    ),
}


def top_level(path: str) -> set[str]:
    """The fields of a surface's body."""
    return {name for kind in TYPES[path] for name in typing_extensions.get_type_hints(kind)}


def inner() -> dict[str, list[str]]:
    """Every object within any body, by the name of its type, with its fields."""
    found: dict[Any, set[str]] = {}
    roots = [kind for kinds in TYPES.values() for kind in kinds]
    for kind in roots:
        _walk(kind, found)
    named: dict[str, set[str]] = {}
    for kind, fields in found.items():
        if kind not in roots:
            place = ".".join(part for part in kind.__module__.split(".") if part != "types")
            named.setdefault(f"{place}.{kind.__name__}", set()).update(fields)
    return {name: sorted(fields) for name, fields in sorted(named.items())}


def _walk(kind: Any, found: dict[Any, set[str]]) -> None:
    if not typing_extensions.is_typeddict(kind):
        for part in get_args(kind):
            _walk(part, found)
    elif kind not in found:
        hints = typing_extensions.get_type_hints(kind)
        found[kind] = set(hints)
        for hint in hints.values():
            _walk(hint, found)


if __name__ == "__main__":
    DECIDED.write_text(json.dumps(inner(), indent=0, separators=(",", ":")) + "\n")
