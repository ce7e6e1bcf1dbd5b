"""`POST /v1/chat/completions`: the fields it has alone, what of OpenAI's is refused, and the job a request becomes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from backends.messages import ChatPrompt, Constraint, Generate, ToolCalls
from backends.weight import sure_bytes
from server.errors import ApiError, unsupported_parameter
from server.schemas import tools as tool_schemas
from server.schemas.answers import INSTEAD_OF_GRAMMARS, AnswerFields, with_tools
from server.schemas.fields import (
    INT32_MAX,
    Bool,
    SamplingFields,
    Tokens,
    TokensOrNone,
    sampling,
)
from server.schemas.harmless import ChatHarmless
from server.schemas.messages import ConversationFields, Messages, chat_prompt, unknown_names
from server.schemas.predictions import Prediction
from server.schemas.problems import check, problem, wrong_type
from server.schemas.surface import ELSEWHERE, Surface
from server.schemas.tool_results import check_chat

if TYPE_CHECKING:
    from backends.messages import GeneratorFacts, Ready

_EFFORTS: Mapping[str, str] = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""In the three words that templates know."""


def _effort(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise wrong_type("a string", value)
    return value


_OPTIONS: Mapping[str, tuple[type, str]] = {
    "enable_thinking": (bool, "a boolean"),
    "thinking": (bool, "a boolean"),
    "reasoning_effort": (str, "a string"),
    "thinking_budget": (int, "an integer"),
}


def _template_kwargs(value: Any) -> Any:
    """Only the switches for reasoning may be set; everything else is the template's own business."""
    if value is not None and not isinstance(value, dict):
        raise wrong_type("an object", value)
    for name, setting in (value or {}).items():
        if name not in _OPTIONS:
            raise problem("unsupported_parameter", "Unsupported parameter: '{param}' takes only {names}.", names=_NAMES)
        kind, expected = _OPTIONS[name]
        if type(setting) is not kind or (isinstance(setting, int) and not 0 <= setting <= INT32_MAX):
            raise problem(
                "invalid_type", "Invalid type for '{param}': expected {kind}.", field=f".{name}", kind=expected
            )
    return value


_NAMES = ", ".join(f"'{name}'" for name in _OPTIONS)


class ChatRequest(SamplingFields, AnswerFields, ConversationFields, ChatHarmless):
    """The body of a chat completion."""

    messages: Messages
    logprobs: Bool = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    prediction: Prediction | None = None
    tools: tool_schemas.Tools = None
    tool_choice: tool_schemas.ToolChoice = None
    parallel_tool_calls: Bool = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None, BeforeValidator(_effort)
    ] = None
    thinking_budget: TokensOrNone = None
    """Tokens after which the reasoning is closed."""
    chat_template_kwargs: Annotated[dict[str, bool | str | int] | None, BeforeValidator(_template_kwargs)] = None

    @cached_property
    def functions(self) -> list[dict[str, Any]]:
        """The tools the model is shown: none where the client wants no call."""
        return [] if self.tool_choice == "none" else tool_schemas.offered(self.tools)

    @property
    def thinking(self) -> bool | None:
        """Whether the model shall reason first; None leaves it to its template."""
        for name in ("enable_thinking", "thinking"):
            if name in (self.chat_template_kwargs or {}):
                return bool((self.chat_template_kwargs or {})[name])
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"

    @property
    def budget(self) -> int | None:
        """Tokens of reasoning at most."""
        inner = (self.chat_template_kwargs or {}).get("thinking_budget")
        return self.thinking_budget if inner is None else int(inner)

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect on a model of which nothing is known."""
        return self.ignored_by(None)

    def ignored_by(self, ready: Ready | None) -> list[str]:
        """Names of fields that have no effect on this model."""
        facts = None if ready is None else ready.generator
        options = [] if facts is None else facts.template_options
        leaves_effort = self.reasoning_effort not in (None, "none") and "reasoning_effort" not in options
        return [
            *self.without_effect(SURFACE.fields),
            *(["reasoning_effort"] if leaves_effort else []),
            *tool_schemas.without_effect(self.tools),
            *unknown_names(self.messages),
        ]

    @property
    def session(self) -> str:
        """What the client calls this conversation, where it does."""
        return (self.prompt_cache_key or "")[:256]

    @property
    def limit(self) -> int | None:
        """Tokens each choice may have, under the newer name or the older."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of what is rendered for certain: what messages say, results and calls of tools, and the tools."""
        return sure_bytes(self._prompt)

    def job(self, job_id: str) -> Generate:
        """The job; `max_tokens` above the room left is the engine's to clamp."""
        return Generate(
            id=job_id,
            prompt=self._prompt,
            sampling=sampling(self),
            max_tokens=self.limit,
            min_tokens=self.min_tokens or 0,
            stop=list(self.stop),
            n=self.n or 1,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ignore_eos=bool(self.ignore_eos),
            cache_prompt=self.cache_prompt is not False,
            prediction="" if self.prediction is None else self.prediction.text,
            speculation=self.speculation or "auto",
            constraint=self.constraint,
            json_whitespace=self.json_whitespace,
            reasoning_budget=self.budget,
            session=self.session,
        )

    @cached_property
    def constraint(self) -> Constraint | None:
        """What the answer has to be. Raises ApiError 400."""
        answer = self.answer()
        if not self.functions and not isinstance(self.tool_choice, tool_schemas.NamedTool):
            tool_schemas.calls(self.tools, self.tool_choice, parallel=True, content=None)
            return answer
        content = with_tools(answer)
        parallel = self.parallel_tool_calls is not False
        return tool_schemas.calls(self.tools, self.tool_choice, parallel=parallel, content=content)

    def prompt(self) -> ChatPrompt:
        """The conversation in the form templates take, with every switch by which one may be told how to reason."""
        return self._prompt

    @cached_property
    def _prompt(self) -> ChatPrompt:
        kwargs: dict[str, bool | str | int] = {}
        if self.thinking is not None:
            kwargs |= {"enable_thinking": self.thinking, "thinking": self.thinking}
        if self.reasoning_effort is not None:
            kwargs["reasoning_effort"] = _EFFORTS[self.reasoning_effort]
        if self.budget is not None:
            kwargs["thinking_budget"] = self.budget
        kwargs |= self.chat_template_kwargs or {}
        return chat_prompt(self.messages, tools=self.functions, end=self.end, template_kwargs=kwargs)

    def require(self, facts: GeneratorFacts) -> None:
        """Refuse what this model cannot do. Raises ApiError 400."""
        reasons = bool(facts.template_options) or facts.reasoning_marks is not None
        if self.thinking and not reasons:
            name = "chat_template_kwargs" if self.reasoning_effort is None else "reasoning_effort"
            raise unsupported_parameter(name, "is not supported with this model: it does not reason.")
        if self.budget is not None and facts.reasoning_marks is None:
            name = "chat_template_kwargs" if self.thinking_budget is None else "thinking_budget"
            raise unsupported_parameter(name, "is not supported with this model: it does not reason.")
        if "reasoning_effort" in (self.chat_template_kwargs or {}) and "reasoning_effort" not in facts.template_options:
            raise unsupported_parameter(
                "chat_template_kwargs.reasoning_effort",
                "is not supported with this model: its chat template does not read it.",
            )


SURFACE = Surface(
    path="/v1/chat/completions",
    name="Chat",
    summary="Answer a conversation",
    model=ChatRequest,
    example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": True},
    refused={
        **ELSEWHERE,
        "modalities": (["text"],),
        "audio": (),
        "verbosity": ("medium",),
        "web_search_options": (),
        "moderation": (),
        "functions": ([],),
        "function_call": ("none",),
        "chat_template": (),
        # Of other servers' chats: they change what the messages mean.
        "documents": ([],),
        "images": ([],),
        "system": ("",),
        "prompt": ("",),
        "raw": (False,),
        "template": ("",),
        "suffix": ("",),
        "grammar": (),
        "guided_grammar": (),
    },
    instead={"functions": "'tools'", "function_call": "'tool_choice'", **INSTEAD_OF_GRAMMARS},
    no_effect={*ChatHarmless.model_fields, "user"},
)


def parse_chat(data: dict[str, Any]) -> ChatRequest:
    """The checked request. Raises ApiError 400."""
    request = parse_meaning(data)
    tool_schemas.refuse_kinds(request.tools)
    check_chat(request.messages, open_end=request.end == "nothing")
    return request


def parse_meaning(data: dict[str, Any]) -> ChatRequest:
    """The same for other surfaces' requests, which say in their own words what is wrong with results of calls."""
    SURFACE.refuse(data)
    request = check(ChatRequest, data)
    _check_together(request)
    _ = request.text_bytes  # counted here, in the thread that reads a large body
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
    effort = request.reasoning_effort
    if effort is not None and request.thinking != (effort != "none"):
        raise ApiError(
            400,
            "Invalid 'reasoning_effort': it contradicts 'chat_template_kwargs'.",
            param="reasoning_effort",
            code="invalid_parameter_combination",
        )
    request.check_end(request.messages)
    constraint = request.constraint
    form = constraint.content if isinstance(constraint, ToolCalls) else constraint
    if request.end == "message" and form is not None:
        raise ApiError(
            400,
            f"Invalid '{request.end_param}': an answer whose form is given cannot begin with a given text.",
            param=request.end_param,
            code="invalid_parameter_combination",
        )
