"""`POST /v1/chat/completions`: every field OpenAI has, what is done with it, and the job it becomes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from backends.messages import ChatPrompt, Generate
from server.errors import ApiError, unsupported_parameter
from server.schemas import tools as tool_schemas
from server.schemas.fields import Bool, SamplingFields, Tokens, Use, refuse_unsupported, sampling
from server.schemas.messages import Messages, conversation, unknown_names
from server.schemas.problems import check, problem, wrong_type

FIELDS: dict[str, Use] = {
    "model": Use.HONOURED,
    "messages": Use.HONOURED,
    "stream": Use.HONOURED,
    "stream_options": Use.HONOURED,
    "n": Use.HONOURED,
    "seed": Use.HONOURED,
    "stop": Use.HONOURED,
    "temperature": Use.HONOURED,
    "top_p": Use.HONOURED,
    "presence_penalty": Use.HONOURED,
    "frequency_penalty": Use.HONOURED,
    "logit_bias": Use.HONOURED,
    "logprobs": Use.HONOURED,
    "top_logprobs": Use.HONOURED,
    "max_tokens": Use.HONOURED,
    "max_completion_tokens": Use.HONOURED,
    "tools": Use.HONOURED,
    "tool_choice": Use.HONOURED,
    "parallel_tool_calls": Use.HONOURED,
    "reasoning_effort": Use.HONOURED,
    "user": Use.HARMLESS,
    "metadata": Use.HARMLESS,
    "store": Use.HARMLESS,
    "service_tier": Use.HARMLESS,
    "safety_identifier": Use.HARMLESS,
    "prompt_cache_key": Use.HARMLESS,
    "prompt_cache_retention": Use.HARMLESS,
    "prompt_cache_options": Use.HARMLESS,
    "prediction": Use.HARMLESS,
    "response_format": Use.NEUTRAL_ONLY,
    "modalities": Use.NEUTRAL_ONLY,
    "audio": Use.NEUTRAL_ONLY,
    "verbosity": Use.NEUTRAL_ONLY,
    "web_search_options": Use.NEUTRAL_ONLY,
    "moderation": Use.NEUTRAL_ONLY,
    "functions": Use.NEUTRAL_ONLY,
    "function_call": Use.NEUTRAL_ONLY,
    # Extensions of this and of other servers.
    "top_k": Use.HONOURED,
    "min_p": Use.HONOURED,
    "repetition_penalty": Use.HONOURED,
    "ignore_eos": Use.HONOURED,
    "min_tokens": Use.HONOURED,
    "priority": Use.HONOURED,
    "chat_template_kwargs": Use.HONOURED,
    "cache_prompt": Use.HARMLESS,
    "keep_alive": Use.HONOURED,
    "chat_template": Use.NEUTRAL_ONLY,
    "grammar": Use.NEUTRAL_ONLY,
    "json_schema": Use.NEUTRAL_ONLY,
    "structured_outputs": Use.NEUTRAL_ONLY,
    "guided_json": Use.NEUTRAL_ONLY,
    "guided_regex": Use.NEUTRAL_ONLY,
    "guided_choice": Use.NEUTRAL_ONLY,
    "guided_grammar": Use.NEUTRAL_ONLY,
}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none",),
}
"""Values that ask for nothing; null always does."""


def _effort(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise wrong_type("a string", value)
    return value


def _template_kwargs(value: Any) -> Any:
    """Only the switch for reasoning may be set; everything else is the template's own business."""
    if value is not None and not isinstance(value, dict):
        raise wrong_type("an object", value)
    for name, setting in (value or {}).items():
        if name != "enable_thinking":
            raise problem("unsupported_parameter", "Unsupported parameter: '{param}' takes only 'enable_thinking'.")
        if not isinstance(setting, bool):
            raise problem("invalid_type", "Invalid type for '{param}': expected a boolean.", field=".enable_thinking")
    return value


class ChatRequest(SamplingFields):
    """The body of a chat completion."""

    messages: Messages
    logprobs: Bool = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    tools: tool_schemas.Tools = None
    tool_choice: tool_schemas.ToolChoice = None
    parallel_tool_calls: Bool = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None, BeforeValidator(_effort)
    ] = None
    chat_template_kwargs: Annotated[dict[str, bool] | None, BeforeValidator(_template_kwargs)] = None

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The tools the model is shown: none where the client wants no call."""
        return [] if self.tool_choice == "none" else tool_schemas.offered(self.tools)

    @property
    def single_call(self) -> bool:
        """At most one tool call per choice is wanted."""
        return self.parallel_tool_calls is False and bool(self.functions)

    @property
    def thinking(self) -> bool | None:
        """Whether the model shall reason first; None leaves it to its template."""
        if self.chat_template_kwargs:
            return self.chat_template_kwargs["enable_thinking"]
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect; an effort switches reasoning on, but how much is the model's choice."""
        return [
            *self.without_effect(FIELDS),
            *(["reasoning_effort"] if self.reasoning_effort not in (None, "none") else []),
            *tool_schemas.without_effect(self.tools),
            *unknown_names(self.messages),
        ]

    @property
    def limit(self) -> int | None:
        """Tokens each choice may have, under the newer name or the older."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def text_bytes(self) -> int:
        """Bytes of what the messages say, without roles and template."""
        return sum(len(message.text.encode()) for message in self.messages)

    def job(self, job_id: str) -> Generate:
        """The job; `max_tokens` above the room left is the engine's to clamp."""
        # A call ends with its closing tag, so stopping there is what "one call" means.
        stop = [*self.stop, "</tool_call>"] if self.single_call else list(self.stop)
        return Generate(
            id=job_id,
            prompt=self.prompt(),
            sampling=sampling(self),
            max_tokens=self.limit,
            min_tokens=self.min_tokens or 0,
            stop=stop,
            n=self.n or 1,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ignore_eos=bool(self.ignore_eos),
        )

    def prompt(self) -> ChatPrompt:
        """The conversation in the form templates take."""
        kwargs: dict[str, bool | str | int] = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return ChatPrompt(messages=conversation(self.messages), tools=self.functions, template_kwargs=kwargs)

    def require(self, *, tool_format: str | None, capabilities: list[str]) -> None:
        """Refuse what this model cannot do. Raises ApiError 400."""
        if self.functions:
            tool_schemas.require_hermes(tool_format)
        if self.thinking and "thinking" not in capabilities:
            name = "chat_template_kwargs" if self.chat_template_kwargs else "reasoning_effort"
            raise unsupported_parameter(name, "is not supported with this model: it does not reason.")


def parse_chat(data: dict[str, Any]) -> ChatRequest:
    """The checked request. Raises ApiError 400."""
    refuse_unsupported(data, [name for name, use in FIELDS.items() if use is Use.NEUTRAL_ONLY], _NEUTRAL)
    request = check(ChatRequest, data)
    _check_together(request)
    return request


def _check_together(request: ChatRequest) -> None:
    """Fields that contradict each other. Raises ApiError 400."""
    request.check_together(max_tokens=request.limit)
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(
            400, "Invalid 'top_logprobs': it needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value"
        )
    limits = (request.max_tokens, request.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise ApiError(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' to different values is not supported.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    kwargs, effort = request.chat_template_kwargs, request.reasoning_effort
    if kwargs and effort is not None and kwargs["enable_thinking"] != (effort != "none"):
        raise ApiError(
            400,
            "Invalid 'reasoning_effort': it contradicts 'chat_template_kwargs.enable_thinking'.",
            param="reasoning_effort",
            code="invalid_parameter_combination",
        )
    request.functions  # noqa: B018  (two functions of one name)
