"""The fields that Ollama's chats, texts and embeddings share: options, the form of the answer, how to think, images.

Owns how they are spelt in a chat request; their types and bounds are those of the other surfaces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.schemas.fields import (
    INT32_MAX,
    INT64_MAX,
    Mirostat,
    MirostatTau,
    Penalty,
    Repetition,
    Seed,
    Share,
    Stop,
    Temperature,
    TopK,
    TypicalP,
)
from server.schemas.media import MAX_MEDIA
from server.schemas.problems import problem, wrong_type
from server.schemas.renames import Renames

_Loads = Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | bool | None
LOAD_OPTIONS: Final = (
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv", "logits_all",
    "vocab_only", "use_mmap", "use_mlock", "embedding_only", "num_keep",
)  # fmt: skip
"""How Ollama loads a model. Here the configuration says so, and a client's wish is named in a header.

`num_ctx` as well: the context is the model's, and a prompt that does not fit is refused, never cut.
"""
_RENAMED: Final[Mapping[str, str]] = MappingProxyType(
    {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
)
_EFFORTS: Final = ("low", "medium", "high", "max")


class Options(BaseModel):
    """How tokens are chosen and how many; the names are Ollama's."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    seed: Seed = None
    num_predict: Annotated[int, Field(ge=-2, le=INT32_MAX)] | None = None
    """Tokens at most; -1, -2 and 0 mean as many as there is room for."""
    temperature: Temperature = None
    top_k: TopK = None
    top_p: Share = None
    min_p: Share = None
    typical_p: TypicalP = None
    repeat_penalty: Repetition = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    mirostat: Mirostat = None
    mirostat_tau: MirostatTau = None
    mirostat_eta: Share = None
    stop: Stop = []
    num_ctx: _Loads = None

    @property
    def ignored(self) -> list[str]:
        """Names of those that change nothing."""
        given = {"num_ctx": self.num_ctx, **(self.model_extra or {})}
        return [f"options.{name}" for name, value in given.items() if value is not None]

    def fields(self) -> dict[str, Any]:
        """Those that say something, as chat and text completions spell them."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "num_ctx"}
        if (given["num_predict"] or 0) <= 0:
            given["num_predict"] = None
        if given["seed"] == -1:  # Ollama's word for none
            given["seed"] = None
        return {_RENAMED.get(name, name): value for name, value in given.items() if value is not None and value != []}


def _format(value: Any) -> Any:
    if value is not None and not isinstance(value, dict) and value not in ("", "json"):
        if isinstance(value, str):
            raise problem("invalid_value", "Invalid value for '{param}': expected 'json' or a JSON schema.")
        raise wrong_type("'json' or a JSON schema", value)
    return value


def _think(value: Any) -> Any:
    if isinstance(value, str) and value not in _EFFORTS:
        words = ", ".join(f"'{effort}'" for effort in _EFFORTS)
        raise problem(
            "invalid_value", "Invalid value for '{param}': expected true, false or one of {words}.", words=words
        )
    if value is not None and not isinstance(value, bool | str):
        raise wrong_type("a boolean or a string", value)
    return value


_EffortWord = Literal["low", "medium", "high", "max"]
Format = Annotated[Any, BeforeValidator(_format, json_schema_input_type=Literal["", "json"] | dict[str, Any] | None)]
Think = Annotated[Any, BeforeValidator(_think, json_schema_input_type=bool | _EffortWord | None)]
Images = Annotated[list[str], Field(max_length=MAX_MEDIA, fail_fast=True)] | None


def form(value: Any) -> dict[str, Any] | None:
    """`format` as chat completions' `response_format`."""
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
    return {"type": "json_object"} if value == "json" else None


def thinking(value: bool | str | None) -> dict[str, Any]:
    """`think` as chat completions spell it; nothing where the client leaves it to the model."""
    if isinstance(value, str):
        return {"reasoning_effort": value}
    return {} if value is None else {"chat_template_kwargs": {"enable_thinking": value}}


def content(text: str | None, images: list[str] | None) -> Any:
    """A text beside its images, each plain base64, as the content of a message."""
    if not images:
        return text or ""
    parts = [{"type": "image_url", "image_url": {"url": f"data:;base64,{image}"}} for image in images]
    return [*parts, *([{"type": "text", "text": text}] if text else [])]


def is_unload(keep_alive_s: float | None) -> bool:
    """A request that says nothing beside this asks for the model to leave."""
    return keep_alive_s is not None and math.isclose(keep_alive_s, 0.0)


_OPTION: Final = r"options.\1"
_SHARED: Final[Mapping[str, str]] = MappingProxyType(
    {
        r"^(temperature|top_[kp]|min_p|typical_p|seed|stop|(?:presence|frequency)_penalty|mirostat\w*)\b": _OPTION,
        r"^max_(completion_)?tokens$": "options.num_predict",
        r"^repetition_penalty$": "options.repeat_penalty",
        r"^response_format\b.*": "format",
        r"^(reasoning_effort|chat_template_kwargs\b.*)$": "think",
    }
)
TO_OLLAMA: Final = Renames({r"^(messages\[\d+\])\.content\[.*": r"\1.images", **_SHARED})
"""Chat completions' names in those of `/api/chat`."""
TO_TEXT: Final = Renames({r"^messages\[\d+\]\.content\[.*": "images", r"^(messages|prompt)\b.*": "prompt", **_SHARED})
"""The same in those of `/api/generate`."""
