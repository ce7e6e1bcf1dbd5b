"""Fields that change no answer here, with the types and bounds that the published APIs give them.

A wrong value is refused all the same: a client that sends one means something else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from server.schemas.parts import Strict
from server.schemas.problems import problem

MAX_METADATA_BYTES = 16 << 10
"""Of all names and values together: a stored response keeps them."""


def _small(value: dict[str, str] | None) -> dict[str, str] | None:
    n_bytes = sum(len(text.encode("utf-8", "replace")) for pair in (value or {}).items() for text in pair)
    if n_bytes > MAX_METADATA_BYTES:
        raise problem(
            "string_above_max_length",
            "Invalid '{param}': too long. Expected at most {limit} bytes in all, but got {n} instead.",
            limit=MAX_METADATA_BYTES,
            n=n_bytes,
        )
    return value


Metadata = Annotated[dict[str, str] | None, AfterValidator(_small)]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]


class CacheOptions(Strict):
    """OpenAI's `prompt_cache_options`; what was computed is found again without them."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class CacheFields(BaseModel):
    """What chat completions and responses have in common."""

    prompt_cache_key: str | None = None
    """Names a conversation: of cached prefixes that hold as much, its own is taken."""
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    """OpenAI's own SDKs spell the first one with a hyphen."""
    prompt_cache_options: CacheOptions | None = None
    safety_identifier: str | None = None


class ChatHarmless(CacheFields):
    """Of chat completions."""

    metadata: Metadata = None
    store: bool | None = None
    service_tier: ServiceTier | None = None


class ResponseStreamOptions(Strict):
    """How a response is streamed; nothing is padded here."""

    include_obfuscation: bool | None = None


class ImageOptions(Strict):
    """How OpenAI packs images; there are none here."""

    context_compression: Literal["auto", "enabled", "disabled"] | None = None


class AccessPrograms(Strict):
    """Which of OpenAI's clients may ask what."""

    cyber: Literal["standard", "daybreak_blue", "daybreak_red"] | None = None


class ResponseHarmless(CacheFields):
    """Of responses."""

    image: ImageOptions | None = None
    access_programs: AccessPrograms | None = None

    service_tier: ServiceTier | Literal["ultrafast"] | None = None
    stream_options: ResponseStreamOptions | None = None
    max_tool_calls: int | None = None
    client_metadata: dict[str, Any] | None = None


class MessageMetadata(Strict):
    """Who asks."""

    user_id: str | None = None


class CacheControl(Strict):
    """Where Anthropic keeps what was computed."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class BillingPolicy(Strict):
    """Who pays."""

    type: Literal["billing_policy"]
    bill_to: Literal["self", "user_profile"] | None = None


class Fallback(Strict):
    """A model that is asked where another refuses for its provider's rules; none does here."""

    model: str


class CreditToken(Strict):
    """What an earlier refusal was paid with."""

    token: str


class MessagesHarmless(BaseModel):
    """Of Anthropic's messages."""

    billing_policy: BillingPolicy | None = None
    fallbacks: Annotated[list[Fallback], Field(max_length=64)] | Literal["default"] | None = None
    fallback_credit_token: CreditToken | str | None = None

    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_control: CacheControl | None = None
    diagnostics: dict[str, Any] | None = None
    speed: Literal["standard", "fast"] | None = None
    inference_geo: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    betas: list[str] | None = None
