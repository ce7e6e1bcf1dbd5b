"""The SDKs' types of the bodies of each surface."""

from __future__ import annotations

from typing import Any

import typing_extensions
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat
from openai.types.responses import input_token_count_params, response_compact_params, response_create_params

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
