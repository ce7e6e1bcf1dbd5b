"""What a body of `/v1/responses` and of the paths below it may hold: the models, and what is done by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.schemas.fields import Bool, SamplingFields, Tokens
from server.schemas.harmless import Metadata, ResponseHarmless
from server.schemas.items import Item, Items
from server.schemas.problems import wrong_type
from server.schemas.surface import ELSEWHERE, Surface

_INCLUDABLE = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class Reasoning(BaseModel):
    """How much the model shall reason."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(BaseModel):
    """The form of the answer's text."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    format: dict[str, Any] | None = None
    verbosity: str | None = None


def _input(value: Any) -> Any:
    """A text is one user message; nothing is nothing said yet."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_type("a string or an array", value)
    return value


class ResponseRequest(ResponseHarmless):
    """The fields of a response that chat completions have not, or otherwise."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    input: Annotated[Items, BeforeValidator(_input, json_schema_input_type=str | list[Item] | None)] = Field(
        default_factory=list
    )
    instructions: str | None = None
    previous_response_id: str | None = None
    store: Bool = None
    max_output_tokens: Tokens = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    include: Annotated[list[_INCLUDABLE], Field(max_length=64, fail_fast=True)] | None = None
    metadata: Metadata = None
    truncation: Literal["auto", "disabled"] | None = None


SURFACE = Surface(
    path="/v1/responses",
    name="Response",
    summary="Answer the items of a conversation, and keep the answer",
    model=ResponseRequest,
    example={"input": "Why is the sky blue?"},
    refused={
        **ELSEWHERE,
        "background": (False,),
        "background_options": (),
        "personality": (),
        "prompt": (),
        "moderation": (),
        "context_management": ([],),
    },
    instead={
        "conversation": "'previous_response_id'",
        "prompt": "'instructions' and 'input'",
        "personality": "'instructions'",
    },
    # `max_tool_calls` counts calls of the provider's own tools, of which there are none here.
    no_effect={*ResponseHarmless.model_fields, "user"},
    shared=(
        *(name for name in SamplingFields.model_fields if name not in ("n", "stream_options")),
        *("top_logprobs", "parallel_tool_calls", "prompt_cache_key", "chat_template_kwargs", "json_whitespace"),
    ),
    required=("model",),
)
COUNT = replace(
    SURFACE,
    path="/v1/responses/input_tokens",
    name="ResponseCount",
    summary="Count the tokens of such an input",
    streams=False,
)
COMPACT = Surface(
    path="/v1/responses/compact",
    name="Compact",
    summary="Sum a conversation up into one item",
    model=ResponseRequest,
    example={"input": [{"role": "user", "content": "Remember the number 7."}]},
    takes=("input", "instructions", "previous_response_id", "prompt_cache_key"),
    shared=("model", "priority", "keep_alive"),
    no_effect=(
        *("prompt_cache_options", "prompt_cache_retention", "service_tier", "image"),
        # What Codex repeats of its other requests; a summary calls nothing and has no form.
        *("tools", "parallel_tool_calls", "reasoning", "text"),
    ),
    required=("model",),
    streams=False,
)
