"""Request fields that surfaces share (`SamplingFields`, `TokenChoice`), and their types: strict, bounded.

Owns the numeric bounds: those of the published schemas, and our own where a request could cost too much. What a
provider allows its customers (four stop strings, sixteen pairs of metadata) is no bound of the protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from backends.messages import Sampling
from server.errors import ApiError
from server.schemas.problems import problem, wrong_type
from server.settings.durations import FORMS, LONGEST_S, parse_duration

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_CHOICES = 128
"""Continuations one request may ask for, over all its prompts."""
MAX_STOPS = 64
MAX_STOP_BYTES = 4096
"""Of all stop strings of one request together: every token is held against them."""
MAX_BIASES = 1024
MAX_BREAKERS = 64
MAX_BREAKER_CHARS = 40
"""llama.cpp cuts longer ones."""
_MAX_IGNORED_NAMES = 16
_MAX_IGNORED_CHARS = 48


def _stops(value: Any) -> Any:
    """One stop string or a list of them."""
    if value is None or isinstance(value, str):
        value = [] if value is None else [value]
    if not isinstance(value, list):
        raise wrong_type("a string or an array of strings", value)
    return value


def _stops_fit(stops: list[str]) -> list[str]:
    n_bytes = sum(len(stop.encode("utf-8", "replace")) for stop in stops)
    if n_bytes > MAX_STOP_BYTES:
        raise problem(
            "string_above_max_length",
            "Invalid '{param}': too long. Expected at most {limit} bytes in all strings together, but got {n} instead.",
            limit=MAX_STOP_BYTES,
            n=n_bytes,
        )
    return stops


def _biases(value: Any) -> Any:
    """Token ids as strings to numbers in -100..100; the vocabulary's size is the engine's to check."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    if len(value) > MAX_BIASES:
        raise problem(
            "object_above_max_properties",
            "Invalid '{param}': too many entries. Expected at most {limit}, but got {n} instead.",
            limit=MAX_BIASES,
            n=len(value),
        )
    return {_token_id(key): _bias(bias) for key, bias in value.items()}


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= INT32_MAX):
        raise problem("invalid_value", "Invalid key in '{param}': a key is the number of a token, such as '50256'.")
    return int(key)


def _bias(bias: object) -> float:
    if isinstance(bias, bool) or not isinstance(bias, (int, float)):
        raise wrong_type("a number", bias)
    if not -100 <= bias <= 100:
        side = "decimal_above_max_value" if bias > 100 else "decimal_below_min_value"
        raise problem(side, "Invalid value in '{param}': a bias is a number from -100 to 100.")
    return float(bias)


def _keep_alive(value: Any) -> Any:
    """Seconds, as a number or as a duration of Go's; anything negative means for ever."""
    if isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError:
            raise problem("invalid_value", f"Invalid '{{param}}': expected {FORMS}.") from None
    elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise wrong_type("a number of seconds or a duration such as '5m'", value)
    if isinstance(value, int):
        value = min(value, 2**64)  # more than is allowed, and still a float
    return value if value is None else -1.0 if value < 0 else float(value)


Bool = bool | None
Tokens = Annotated[int, Field(ge=1, le=INT32_MAX)] | None
TokensOrNone = Annotated[int, Field(ge=0, le=INT32_MAX)] | None
Seed = Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None
Repetition = Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False)] | None
TopK = Annotated[int, Field(ge=-1, le=INT32_MAX)] | None
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None
KeepAlive = Annotated[
    Annotated[float, Field(le=LONGEST_S, allow_inf_nan=False)] | None,
    BeforeValidator(_keep_alive, json_schema_input_type=float | str | None),
]
Priority = Annotated[int, Field(ge=-1000, le=1000)] | None
StopList = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_BYTES)]],
    Field(max_length=MAX_STOPS, fail_fast=True),
    AfterValidator(_stops_fit),
]
Stop = Annotated[
    StopList,
    BeforeValidator(_stops, json_schema_input_type=str | list[str] | None),
]
LogitBias = Annotated[dict[int, float], BeforeValidator(_biases, json_schema_input_type=dict[str, float] | None)]


TypicalP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None
TopNSigma = Annotated[float, Field(ge=-1, le=100, allow_inf_nan=False)] | None
DynatempRange = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None
DynatempExponent = Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None
Mirostat = Annotated[int, Field(ge=0, le=2)] | None
MirostatTau = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None
DryMultiplier = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None
DryBase = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None
DryWindow = Annotated[int, Field(ge=-1, le=INT32_MAX)] | None
Breakers = (
    Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_BREAKER_CHARS)]],
        Field(max_length=MAX_BREAKERS, fail_fast=True),
    ]
    | None
)


class StreamOptions(BaseModel):
    """How a stream reports; `include_obfuscation` pads OpenAI's chunks and asks nothing of ours."""

    model_config = ConfigDict(strict=True, extra="allow")
    include_usage: Bool = None
    include_obfuscation: Bool = None


_AS_GIVEN = (
    "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent", "mirostat",
    "mirostat_tau", "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
)  # fmt: skip
"""Fields with the names and the neutral values that `Sampling` has."""


class TokenChoice(BaseModel):
    """How tokens are chosen, as every surface that generates text spells it."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    seed: Seed = None
    temperature: Temperature = None
    top_p: Share = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    logit_bias: LogitBias = {}
    top_k: TopK = None
    min_p: Share = None
    typical_p: TypicalP = None
    top_n_sigma: TopNSigma = None
    xtc_probability: Share = None
    xtc_threshold: Share = None
    dynatemp_range: DynatempRange = None
    dynatemp_exponent: DynatempExponent = None
    mirostat: Mirostat = None
    mirostat_tau: MirostatTau = None
    mirostat_eta: Share = None
    dry_multiplier: DryMultiplier = None
    dry_base: DryBase = None
    dry_allowed_length: TokensOrNone = None
    dry_penalty_last_n: DryWindow = None
    dry_sequence_breakers: Breakers = None

    def sampling(self, *, temperature: float, repetition_penalty: float | None) -> Sampling:
        """The choice, with the surface's own default temperature; what else the client leaves out is off."""
        given: dict[str, Any] = {name: value for name in _AS_GIVEN if (value := getattr(self, name)) is not None}
        if self.dry_sequence_breakers is not None:
            given["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        return Sampling(
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
            logit_bias=self.logit_bias,
            **given,
        )


class SamplingFields(TokenChoice):
    """What chat and text completions have in common."""

    model: str
    stream: Bool = None
    stream_options: StreamOptions | None = None
    n: Choices = None
    stop: Stop = []
    user: str | None = None
    repetition_penalty: Repetition = None
    ignore_eos: Bool = None
    min_tokens: TokensOrNone = None
    cache_prompt: Bool = None
    speculation: Literal["auto", "off"] | None = None
    """`off`: no tokens are drafted for this request."""
    priority: Priority = None
    keep_alive: KeepAlive = None
    """Seconds that the model stays after this request, until the next one says otherwise; -1 means for ever."""

    @property
    def wants_usage(self) -> bool:
        """A last chunk with the usage is asked for."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def without_effect(self, known: Container[str]) -> list[str]:
        """Names of fields that were accepted and change nothing."""
        unknown = [name for name in self.model_extra or {} if name not in known]
        options = (self.stream_options and self.stream_options.model_extra) or {}
        return [*unknown, *(f"stream_options.{name}" for name in options)]

    def check_together(self, *, max_tokens: int | None) -> None:
        """Fields that contradict each other. Raises ApiError 400."""
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise ApiError(
                400,
                f"Invalid 'min_tokens': it must be at most 'max_tokens', which is {max_tokens}, but got "
                f"{self.min_tokens} instead.",
                param="min_tokens",
                code="invalid_parameter_combination",
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400,
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
                code="invalid_value",
            )


def sampling(request: SamplingFields) -> Sampling:
    """How tokens are chosen; what the client leaves out has OpenAI's default."""
    return request.sampling(temperature=1.0, repetition_penalty=request.repetition_penalty)


def ignored_header(names: Iterable[str]) -> str | None:
    """The value of `x-onecard-ignored`: names that fit a header, at most sixteen; None for no name."""
    # A header that ends with an empty name would end with a space, which no server may send.
    listed = [quote(name.encode("utf-8", "replace"), safe="[].")[:_MAX_IGNORED_CHARS] or '""' for name in names]
    if len(listed) > _MAX_IGNORED_NAMES:
        listed = [*listed[:_MAX_IGNORED_NAMES], f"+{len(listed) - _MAX_IGNORED_NAMES}"]
    return ", ".join(listed) or None
