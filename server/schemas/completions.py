"""`POST /v1/completions`: its fields, what is refused, and the jobs a request becomes (one per prompt)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from backends.messages import FimPrompt, Generate, Prompt, TextPrompt, TokenPrompt
from server.errors import ApiError, unsupported_parameter
from server.schemas.answers import INSTEAD_OF_GRAMMARS, AnswerFields
from server.schemas.fields import (
    INT32_MAX,
    MAX_CHOICES,
    Bool,
    SamplingFields,
    TokensOrNone,
    sampling,
)
from server.schemas.problems import check, problem, wrong_type
from server.schemas.surface import Surface

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 2048
MAX_PROMPT_TOKENS = 2**20
MAX_SCORED = 2**20
"""Log-probabilities of prompts that one answer may have to hold, a character counted as a token."""


def _prompts(value: Any) -> Any:
    """Any of OpenAI's four shapes as a list of texts and lists of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong_type("a string or an array", value)
    if not value:
        raise problem("empty_array", "Invalid '{param}': empty array. Expected at least one prompt.")
    if isinstance(value[0], int):
        return [_token_ids(value)]
    if len(value) > MAX_PROMPTS:
        raise problem(
            "array_above_max_length",
            "Invalid '{param}': array too long. Expected an array with maximum length {limit}, but got an array with "
            "length {n} instead.",
            limit=MAX_PROMPTS,
            n=len(value),
        )
    return [prompt if isinstance(prompt, str) else _token_ids(prompt) for prompt in value]


def _token_ids(value: Any) -> list[int]:
    """Token ids as integers in range; whether the vocabulary has them is the engine's to say."""
    if not isinstance(value, list):
        raise wrong_type("an array of integers", value)
    if not value:
        raise problem("empty_array", "Invalid '{param}': empty array. Expected at least one token.")
    if len(value) > MAX_PROMPT_TOKENS:
        raise problem("array_above_max_length", "Invalid '{param}': too many tokens.")
    for token in value:
        if type(token) is not int:
            raise wrong_type("an array of integers", token)
        if not 0 <= token <= INT32_MAX:
            raise problem("invalid_value", "Invalid '{param}': a token id is not in the model's vocabulary.")
    return value


class CompletionRequest(SamplingFields, AnswerFields):
    """The body of a text completion."""

    prompt: Annotated[
        list[str | list[int]],
        BeforeValidator(_prompts, json_schema_input_type=str | list[int] | list[str | list[int]]),
    ]
    suffix: str | None = None
    echo: Bool = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    max_tokens: TokensOrNone = None

    @property
    def choices_per_prompt(self) -> int:
        """Continuations of each prompt."""
        return self.n or 1

    @property
    def candidates_per_prompt(self) -> int:
        """Continuations that are computed of each prompt, of which the best are delivered."""
        return max(self.best_of or 0, self.choices_per_prompt)

    @property
    def limit(self) -> int:
        """Tokens each choice may have."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return self.without_effect(SURFACE.fields)

    def jobs(self, job_id: str) -> list[Generate]:
        """One job per prompt, their ids told apart by a number."""
        constraint = self.answer()
        chooses = self.candidates_per_prompt > self.choices_per_prompt
        return [
            Generate(
                id=f"{job_id}-{i}",
                prompt=self._prompt(prompt),
                sampling=sampling(self),
                max_tokens=self.limit,
                min_tokens=self.min_tokens or 0,
                stop=list(self.stop),
                n=self.candidates_per_prompt,
                logprobs=0 if chooses and self.logprobs is None else self.logprobs,
                ignore_eos=bool(self.ignore_eos),
                cache_prompt=self.cache_prompt is not False,
                speculation=self.speculation or "auto",
                echo=bool(self.echo),
                constraint=constraint,
                json_whitespace=self.json_whitespace,
            )
            for i, prompt in enumerate(self.prompt)
        ]

    def _prompt(self, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, list):
            return TokenPrompt(tokens=prompt)
        if self.suffix is not None:
            return FimPrompt(prefix=prompt, suffix=self.suffix)
        return TextPrompt(text=prompt)


SURFACE = Surface(
    path="/v1/completions",
    name="Completion",
    summary="Continue texts",
    model=CompletionRequest,
    example={"prompt": "Once upon a time", "max_tokens": 64},
    refused={"prompt_embeds": (), "grammar": (), "guided_grammar": ()},
    instead=INSTEAD_OF_GRAMMARS,
    no_effect={"user"},
)


def parse_completion(data: dict[str, Any]) -> CompletionRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    request = check(CompletionRequest, data)
    request.check_together(max_tokens=request.limit)
    _check_counts(request)
    _check_combinations(request)
    request.answer()  # schemas, and what may not stand together
    return request


def _check_counts(request: CompletionRequest) -> None:
    """How much work one request may ask for. Raises ApiError 400."""
    n = request.choices_per_prompt
    if request.best_of is not None and request.best_of < n:
        raise ApiError(
            400,
            f"Invalid 'best_of': it must be at least 'n', which is {n}, but got {request.best_of} instead.",
            param="best_of",
            code="invalid_value",
        )
    if request.best_of is not None and request.best_of > n and request.stream:
        raise ApiError(
            400,
            "Invalid 'best_of': the best of several answers is known at their end, so it cannot be streamed.",
            param="best_of",
            code="invalid_parameter_combination",
        )
    n = request.candidates_per_prompt
    if len(request.prompt) * n > MAX_CHOICES:
        raise ApiError(
            400,
            f"Invalid 'prompt': {len(request.prompt)} prompts with {n} choices each are more than {MAX_CHOICES}.",
            param="prompt",
            code="array_above_max_length",
        )


def _check_scored(request: CompletionRequest, n_top: int) -> None:
    """How much `echo` with `logprobs` may ask for. Raises ApiError 400."""
    if request.candidates_per_prompt > request.choices_per_prompt:
        raise unsupported_parameter("best_of", "together with 'echo' and 'logprobs' is not supported by this server.")
    n_scored = sum(map(len, request.prompt)) * request.choices_per_prompt * (1 + n_top)
    if n_scored > MAX_SCORED:
        raise ApiError(
            400,
            f"Invalid 'prompt': with 'echo' and 'logprobs' {len(request.prompt)} prompts may have {MAX_SCORED} "
            f"log-probabilities at most, a character counted as a token, but got {n_scored} instead.",
            param="prompt",
            code="string_above_max_length",
        )


def _check_combinations(request: CompletionRequest) -> None:
    """Fields that this server cannot honour together. Raises ApiError 400."""
    if request.echo and request.logprobs is not None:
        _check_scored(request, request.logprobs)
    if request.suffix is None:
        return
    if request.echo:
        raise unsupported_parameter("echo", "together with 'suffix' is not supported by this server.")
    if any(isinstance(prompt, list) for prompt in request.prompt):
        raise unsupported_parameter("suffix", "with a prompt of token ids is not supported by this server.")
