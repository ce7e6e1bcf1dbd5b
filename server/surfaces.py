"""Every surface that takes a body, in the order of the documents; each is declared beside its model."""

from __future__ import annotations

from typing import Final

from server.schemas import anthropic, chat, completions, embeddings, infill, rerank, response_fields, tokens

SURFACES: Final = (
    chat.SURFACE,
    completions.SURFACE,
    response_fields.SURFACE,
    response_fields.COMPACT,
    response_fields.COUNT,
    anthropic.SURFACE,
    anthropic.COUNT,
    infill.SURFACE,
    embeddings.SURFACE,
    rerank.SURFACE,
    tokens.TOKENIZE_SURFACE,
    tokens.DETOKENIZE_SURFACE,
)
