"""Every surface that takes a body: its path, its fields and what is done with each of them.

The one table behind `/openapi.json`; the routes themselves are in `app`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.schemas import anthropic, chat, completions, embeddings, infill, rerank, response_fields, responses, tokens
from server.schemas.fields import Use

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel


@dataclass(frozen=True)
class Surface:
    """One path."""

    path: str
    name: str
    """A word for the names of its schemas."""
    summary: str
    model: type[BaseModel]
    fields: Mapping[str, Use]
    streams: bool = True
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of fields that are otherwise refused, that ask for nothing; null always does."""
    shared: tuple[str, ...] = ()
    """Fields that are checked as chat completions' own."""
    required: tuple[str, ...] = ()
    """Fields that must be there beside those the model requires."""


def _own(model: type[BaseModel]) -> dict[str, Use]:
    """The fields of a surface of which every one is honoured."""
    return dict.fromkeys(model.model_fields, Use.HONOURED)


SURFACES = (
    Surface(
        "/v1/chat/completions",
        "Chat",
        "Answer a conversation",
        chat.ChatRequest,
        chat.FIELDS,
        neutral=chat.NEUTRAL,
    ),
    Surface(
        "/v1/completions",
        "Completion",
        "Continue texts",
        completions.CompletionRequest,
        completions.FIELDS,
    ),
    Surface(
        "/v1/responses",
        "Response",
        "Answer the items of a conversation, and keep the answer",
        responses.ResponseRequest,
        response_fields.FIELDS,
        neutral=response_fields.NEUTRAL,
        shared=response_fields.SAME,
        required=("model",),
    ),
    Surface(
        "/v1/responses/compact",
        "Compact",
        "Sum a conversation up into one item",
        responses.ResponseRequest,
        responses.COMPACT_FIELDS,
        streams=False,
        shared=("model", "priority", "keep_alive"),
        required=("model",),
    ),
    Surface(
        "/v1/responses/input_tokens",
        "ResponseCount",
        "Count the tokens of such an input",
        responses.ResponseRequest,
        response_fields.FIELDS,
        streams=False,
        neutral=response_fields.NEUTRAL,
        shared=response_fields.SAME,
        required=("model",),
    ),
    Surface(
        "/v1/messages",
        "Messages",
        "Answer a conversation in Anthropic's shape",
        anthropic.MessagesRequest,
        anthropic.FIELDS,
        neutral=anthropic.NEUTRAL,
        shared=anthropic.SAME,
        required=("model", "max_tokens"),
    ),
    Surface(
        "/v1/messages/count_tokens",
        "MessagesCount",
        "Count the tokens of such a conversation",
        anthropic.MessagesRequest,
        anthropic.FIELDS,
        streams=False,
        neutral=anthropic.NEUTRAL,
        shared=anthropic.SAME,
        required=("model",),
    ),
    Surface(
        "/infill",
        "Infill",
        "Fill in the middle, in llama.cpp's shape",
        infill.InfillRequest,
        infill.FIELDS,
        neutral=infill.NEUTRAL,
    ),
    Surface(
        "/v1/embeddings",
        "Embedding",
        "Vectors of texts",
        embeddings.EmbeddingRequest,
        embeddings.FIELDS,
        streams=False,
    ),
    Surface(
        "/v1/rerank", "Rerank", "Score documents against a query", rerank.RerankRequest, rerank.FIELDS, streams=False
    ),
    Surface(
        "/tokenize",
        "Tokenize",
        "Token ids of a text or a conversation",
        tokens.TokenizeRequest,
        _own(tokens.TokenizeRequest),
        streams=False,
    ),
    Surface(
        "/detokenize",
        "Detokenize",
        "The text of token ids",
        tokens.DetokenizeRequest,
        _own(tokens.DetokenizeRequest),
        streams=False,
    ),
)
