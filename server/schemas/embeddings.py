"""`POST /v1/embeddings`: every field OpenAI has, what is done with it, and the jobs that a request becomes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from backends.kinds import EMBED
from backends.messages import Embed
from server.schemas.completions import MAX_PROMPT_TOKENS
from server.schemas.fields import INT32_MAX, Bool, KeepAlive, Priority
from server.schemas.problems import check, problem, wrong_type
from server.schemas.surface import Surface

PIECE_INPUTS = 256
PIECE_BYTES = 64 * 1024
"""A request becomes jobs of this size, so that no client waits until thousands of texts are tokenized."""
_TOKEN_BYTES = 4
HINT = "hint: send text; in LangChain set check_embedding_ctx_length=False"

_SHAPES = "a string, an array of strings, an array of token ids or an array of such arrays"


def _inputs(value: Any) -> Any:
    """Any of OpenAI's four shapes as a list of texts or a list of lists of token ids."""
    if isinstance(value, str):
        return [_text(value, "")]
    if not isinstance(value, list):
        raise wrong_type(_SHAPES, value)
    if not value:
        raise problem("empty_array", "Invalid '{param}': empty array. Expected at least one input.")
    if type(value[0]) is int:
        return [_token_ids(value, "")]
    if len(value) > EMBED.limits.items:
        raise problem(
            "array_above_max_length",
            "Invalid '{param}': array too long. Expected an array with maximum length {limit}, but got an array with "
            "length {n} instead.",
            limit=EMBED.limits.items,
            n=len(value),
        )
    one = _token_ids if isinstance(value[0], list) else _text
    return [one(item, f"[{place}]") for place, item in enumerate(value)]


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise problem("invalid_type", "Invalid type for '{param}': expected {shapes}.", field=place, shapes=_SHAPES)
    if not value:
        raise problem("empty_string", "Invalid '{param}': an empty text has no embedding.", field=place)
    return value


def _token_ids(value: Any, place: str) -> list[int]:
    """Token ids in range; whether the vocabulary has them is the engine's to say."""
    if not isinstance(value, list):
        raise problem("invalid_type", "Invalid type for '{param}': expected {shapes}.", field=place, shapes=_SHAPES)
    if not value:
        raise problem("empty_array", "Invalid '{param}': empty array. Expected at least one token.", field=place)
    if len(value) > MAX_PROMPT_TOKENS:
        raise problem("array_above_max_length", "Invalid '{param}': too many tokens.", field=place)
    if not all(type(token) is int for token in value):
        raise problem("invalid_type", "Invalid type for '{param}': expected {shapes}.", field=place, shapes=_SHAPES)
    if not 0 <= min(value) <= max(value) <= INT32_MAX:
        raise problem(
            "invalid_value", "Invalid '{param}': a token id is in no model's vocabulary. {hint}", field=place, hint=HINT
        )
    return value


class EmbeddingRequest(BaseModel):
    """The body of `/v1/embeddings`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str
    input: Annotated[
        list[str] | list[list[int]],
        BeforeValidator(_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    user: str | None = None
    normalize: Bool = None
    priority: Priority = None
    keep_alive: KeepAlive = None

    @property
    def as_base64(self) -> bool:
        """Little-endian float32 as text, instead of an array of numbers."""
        return self.encoding_format == "base64"

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return list(self.model_extra or {})

    def jobs(self, job_id: str) -> list[Embed]:
        """Jobs of a bounded size, in the order of the inputs."""
        sizes = [len(one) if isinstance(one, str) else len(one) * _TOKEN_BYTES for one in self.input]
        return [
            Embed(
                id=f"{job_id}-{start}",
                inputs=list(self.input[start:end]),
                dimensions=self.dimensions,
                normalize=self.normalize is not False,
                first=start,
            )
            for start, end in pieces(sizes)
        ]


def pieces(sizes: list[int]) -> list[tuple[int, int]]:
    """Neighbours together as long as they are few and short, as `(start, end)`."""
    found: list[tuple[int, int]] = []
    start = n_bytes = 0
    for place, size in enumerate(sizes):
        if place > start and (place - start >= PIECE_INPUTS or n_bytes + size > PIECE_BYTES):
            found.append((start, place))
            start, n_bytes = place, 0
        n_bytes += size
    return [*found, (start, len(sizes))]


SURFACE = Surface(
    path="/v1/embeddings",
    name="Embedding",
    summary="Vectors of texts",
    model=EmbeddingRequest,
    example={"input": ["a text", "another"]},
    no_effect={"user"},
    streams=False,
)


def parse_embedding(data: dict[str, Any]) -> EmbeddingRequest:
    """The checked request. Raises ApiError 400."""
    return check(EmbeddingRequest, data)
