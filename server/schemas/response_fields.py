"""What is done with each field of `/v1/responses`, and what it is called in the chat request that it becomes."""

from __future__ import annotations

from typing import Any

from server.schemas.fields import ELSEWHERE, Use
from server.schemas.renames import Renames

FIELDS: dict[str, Use] = {
    **ELSEWHERE,
    "model": Use.HONOURED,
    "input": Use.HONOURED,
    "instructions": Use.HONOURED,
    "previous_response_id": Use.HONOURED,
    "store": Use.HONOURED,
    "stream": Use.HONOURED,
    "max_output_tokens": Use.HONOURED,
    "temperature": Use.HONOURED,
    "top_p": Use.HONOURED,
    "top_logprobs": Use.HONOURED,
    "tools": Use.HONOURED,
    "tool_choice": Use.HONOURED,
    "parallel_tool_calls": Use.HONOURED,
    "reasoning": Use.HONOURED,
    "text": Use.HONOURED,
    "include": Use.HONOURED,
    "metadata": Use.HONOURED,
    "truncation": Use.HONOURED,
    "stream_options": Use.HARMLESS,
    "user": Use.HARMLESS,
    "safety_identifier": Use.HARMLESS,
    "prompt_cache_key": Use.HARMLESS,
    "prompt_cache_retention": Use.HARMLESS,
    "prompt_cache_options": Use.HARMLESS,
    "service_tier": Use.HARMLESS,
    "max_tool_calls": Use.HARMLESS,
    "client_metadata": Use.HARMLESS,
    "image": Use.HARMLESS,
    "access_programs": Use.HARMLESS,
    "background": Use.NEUTRAL_ONLY,
    "background_options": Use.NEUTRAL_ONLY,
    "personality": Use.NEUTRAL_ONLY,
    "conversation": Use.NEUTRAL_ONLY,
    "prompt": Use.NEUTRAL_ONLY,
    "moderation": Use.NEUTRAL_ONLY,
    "context_management": Use.NEUTRAL_ONLY,
    # Extensions of this and of other servers.
    "seed": Use.HONOURED,
    "stop": Use.HONOURED,
    "presence_penalty": Use.HONOURED,
    "frequency_penalty": Use.HONOURED,
    "logit_bias": Use.HONOURED,
    "top_k": Use.HONOURED,
    "min_p": Use.HONOURED,
    "repetition_penalty": Use.HONOURED,
    "ignore_eos": Use.HONOURED,
    "min_tokens": Use.HONOURED,
    "priority": Use.HONOURED,
    "keep_alive": Use.HONOURED,
    "chat_template_kwargs": Use.HONOURED,
    "cache_prompt": Use.HONOURED,
    "json_whitespace": Use.HONOURED,
}
"""`max_tool_calls` counts calls of the provider's own tools, of which there are none here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {"background": (False,), "context_management": ([],)}
INSTEAD = {
    "conversation": "'previous_response_id'",
    "prompt": "'instructions' and 'input'",
    "personality": "'instructions'",
}

SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_logprobs",
    "parallel_tool_calls",
    "user",
    "prompt_cache_key",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "priority",
    "keep_alive",
    "chat_template_kwargs",
    "cache_prompt",
    "json_whitespace",
)
"""Fields that chat completions have under the same name; they are checked there."""

RENAMES = Renames(
    {
        r"^messages\b.*": "input",
        r"^max_(completion_)?tokens": "max_output_tokens",
        r"^(tools\[\d*\])\.function\b": r"\1",
        r"^tool_choice\.function\b": "tool_choice",
        r"^tool_choice\.allowed_tools\b": "tool_choice",
        r"^response_format\.json_schema\b": "text.format",
        r"^response_format\b": "text.format",
        r"^verbosity$": "text.verbosity",
        r"^reasoning_effort$": "reasoning.effort",
        r"^logprobs$": "include",
    }
)
