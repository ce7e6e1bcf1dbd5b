"""The shapes of answers that are written as bytes or as plain dictionaries, for `/openapi.json`.

Those that are objects of their own describe themselves: `anthropic_objects`, `response_objects`, the pool's status.
A test holds what is sent against them.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

import msgspec


class CachedTokens(TypedDict):
    """Of the prompt."""

    cached_tokens: int


class AnswerTokens(TypedDict):
    """Of the answer."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CompletionUsage(TypedDict):
    """The tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: AnswerTokens


class PromptUsage(TypedDict):
    """The tokens of what gave vectors or scores."""

    prompt_tokens: int
    total_tokens: int


class TokenLogprobs(TypedDict):
    """A token of an answer, or one that might have been."""

    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: NotRequired[list[TokenLogprobs]]


class ChatLogprobs(TypedDict):
    """Of one choice."""

    content: list[TokenLogprobs]
    refusal: None


class CalledFunction(TypedDict):
    """What is called; its arguments are JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call that the client is to make."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One answer of several."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(TypedDict):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class FunctionPiece(TypedDict):
    """A piece of a call."""

    name: NotRequired[str]
    arguments: str


class ToolCallPiece(TypedDict):
    """More of one call; the first piece names it."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionPiece


class ChatDelta(TypedDict, total=False):
    """What is new."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallPiece]


class ChatChunkChoice(TypedDict):
    """More of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(TypedDict):
    """The data of one event; `[DONE]` follows the last."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[CompletionUsage | None]


class TextLogprobs(TypedDict):
    """Of one choice, token by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None
    text_offset: list[int]


class TextChoice(TypedDict):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(TypedDict):
    """Continuations of texts; in a stream the data of one event."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: NotRequired[CompletionUsage | None]


class Embedding(TypedDict):
    """A vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class EmbeddingList(TypedDict):
    """One vector per input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class RankedText(TypedDict):
    """A document that is given back."""

    text: str


class Ranked(TypedDict):
    """A document's place and score."""

    index: int
    relevance_score: float
    document: NotRequired[RankedText]


class Ranking(TypedDict):
    """The best documents first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: PromptUsage


class InfillObject(TypedDict, total=False):
    """What fills the middle, or the fields of it that were asked for; in a stream the data of one event."""

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    generation_settings: dict[str, Any]
    has_new_line: bool
    truncated: bool
    stop_type: str
    stopping_word: str
    timings: dict[str, float]


class TokenPiece(TypedDict):
    """A token and its text, or its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokens(TypedDict):
    """Token ids."""

    count: int
    max_model_len: int | None
    tokens: list[int | TokenPiece]
    token_strs: NotRequired[list[str]]


class TokenText(TypedDict):
    """The text of token ids, under both dialects' names."""

    content: str
    prompt: str


class InputTokens(TypedDict):
    """The tokens of an input."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseEvent(TypedDict):
    """The data of one event; its `type` says which of OpenAI's it is, and what else it holds."""

    type: str
    sequence_number: int


class MessageEvent(TypedDict):
    """The data of one event; its `type` says which of Anthropic's it is, and what else it holds."""

    type: str


class DeletedResponse(TypedDict):
    """A response is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(TypedDict):
    """A page of input items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorDetail(TypedDict):
    """What went wrong, in OpenAI's four keys."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """Every failure; on `/v1/messages` with `type` and `request_id` beside it, as Anthropic's clients expect."""

    error: ErrorDetail
    type: Literal["error"] | msgspec.UnsetType = msgspec.UNSET
    request_id: str | msgspec.UnsetType = msgspec.UNSET
