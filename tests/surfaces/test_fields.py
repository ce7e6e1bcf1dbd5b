"""Every field that the published APIs have is classified, and what is honoured is read."""

from __future__ import annotations

import pytest

from server.routes.table import SURFACES
from server.schemas import anthropic, response_fields
from server.schemas.surface import Use

RESPONSES = [
    "background",
    "context_management",
    "conversation",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "moderation",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
]
MESSAGES = [
    "cache_control",
    "container",
    "diagnostics",
    "inference_geo",
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
    "user_profile_id",
    "workspace_id",
]


def test_every_field_of_the_published_apis_is_classified():
    assert set(RESPONSES) <= set(response_fields.SURFACE.fields)
    assert set(MESSAGES) <= set(anthropic.SURFACE.fields)


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.path)
def test_what_is_honoured_is_read(surface):
    honoured = {name for name, use in surface.fields.items() if use is Use.HONOURED}
    assert honoured <= set(surface.model.model_fields) | set(surface.shared)
