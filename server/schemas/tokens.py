"""`POST /tokenize` and `/detokenize`, in the shapes of llama.cpp (`content`) and of vLLM (`prompt` or `messages`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from backends.kinds import TOKENIZE
from backends.messages import ChatPrompt, Detokenize, TextPrompt, Tokenize
from backends.weight import media_bytes
from server.errors import ApiError
from server.schemas import tools as tool_schemas
from server.schemas.completions import MAX_PROMPT_TOKENS
from server.schemas.fields import INT32_MAX, Bool
from server.schemas.messages import ConversationFields, Messages, chat_prompt
from server.schemas.problems import check
from server.schemas.surface import Surface

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=INT32_MAX)]], Field(max_length=MAX_PROMPT_TOKENS, fail_fast=True)
]


MAX_TEXT_BYTES = 4 * 2**20
"""More than any context holds. The answer is several times as large, and crosses the process border in one frame."""


class TokenizeRequest(ConversationFields):
    """The body of `/tokenize`; exactly one of `content`, `prompt` and `messages`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: tool_schemas.Tools = None
    add_special: Bool = None
    add_special_tokens: Bool = None
    parse_special: Bool = None
    with_pieces: Bool = None
    return_token_strs: Bool = None

    @property
    def adds_special(self) -> bool:
        """What the client says, else its dialect's default: off for `content`, on for `prompt`."""
        said = self.add_special if self.add_special is not None else self.add_special_tokens
        return self.content is None if said is None else said

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        of_messages = (
            [] if self.messages is not None else sorted({*ConversationFields.model_fields} & self.model_fields_set)
        )
        return [*(["parse_special"] if self.parse_special is False else []), *of_messages, *(self.model_extra or {})]

    def job(self, job_id: str) -> Tokenize:
        """The job."""
        prompt: ChatPrompt | TextPrompt
        if self.messages is not None:
            tools = tool_schemas.offered(self.tools)
            prompt = chat_prompt(self.messages, tools=tools, end=self.end)
        else:
            prompt = TextPrompt(text=(self.content if self.content is not None else self.prompt) or "")
        pieces = bool(self.with_pieces or self.return_token_strs)
        return Tokenize(id=job_id, prompt=prompt, add_special=self.adds_special, pieces=pieces)


class DetokenizeRequest(BaseModel):
    """The body of `/detokenize`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    model: str | None = None
    tokens: TokenIds

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return list(self.model_extra or {})

    def job(self, job_id: str) -> Detokenize:
        """The job."""
        return Detokenize(id=job_id, tokens=self.tokens)


TOKENIZE_SURFACE = Surface(
    path="/tokenize",
    name="Tokenize",
    summary="Token ids of a text or a conversation",
    model=TokenizeRequest,
    example={"content": "a text", "with_pieces": True},
    streams=False,
)
DETOKENIZE_SURFACE = Surface(
    path="/detokenize",
    name="Detokenize",
    summary="The text of token ids",
    model=DetokenizeRequest,
    example={"tokens": [1, 2, 3]},
    streams=False,
)


def parse_tokenize(data: dict[str, Any]) -> TokenizeRequest:
    """The checked request. Raises ApiError 400."""
    request = check(TokenizeRequest, data)
    given = [name for name in ("content", "prompt", "messages") if getattr(request, name) is not None]
    if not given:
        raise ApiError(
            400, "Missing required parameter: 'content'.", param="content", code="missing_required_parameter"
        )
    if len(given) > 1:
        raise ApiError(
            400,
            f"Send one of 'content', 'prompt' and 'messages', not {len(given)} of them.",
            param=given[1],
            code="invalid_parameter_combination",
        )
    tool_schemas.refuse_kinds(request.tools)
    if request.messages is not None:
        request.check_end(request.messages)
    _check_size(request, given[0])
    return request


def _check_size(request: TokenizeRequest, param: str) -> None:
    """What one request may ask a tokenizer to read. Raises ApiError 400."""
    job = request.job("")
    refuse_uncountable(TOKENIZE.weight(job) - media_bytes(job.prompt), param=param)


def refuse_uncountable(n_bytes: int, *, param: str) -> None:
    """Refuse to count the tokens of more text than any context holds. Raises ApiError 400."""
    if n_bytes > MAX_TEXT_BYTES:
        raise ApiError(
            400,
            f"Invalid '{param}': text too long. Expected at most {MAX_TEXT_BYTES} bytes, but got {n_bytes} instead.",
            param=param,
            code="string_above_max_length",
        )


def parse_detokenize(data: dict[str, Any]) -> DetokenizeRequest:
    """The checked request. Raises ApiError 400."""
    return check(DetokenizeRequest, data)
