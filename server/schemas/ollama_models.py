"""`POST /api/embed`, `/api/embeddings`, `/api/show` and `/api/pull`, in Ollama's shape: their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.schemas.embeddings import EmbeddingRequest, parse_embedding
from server.schemas.fields import INT32_MAX, Bool, KeepAlive
from server.schemas.ollama_fields import Options
from server.schemas.problems import check, wrong_type
from server.schemas.renames import Renames
from server.schemas.surface import Surface


class _Body(BaseModel):
    """What all of them name."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value] if value else []
    if value is not None and not isinstance(value, list):
        raise wrong_type("a string or an array of strings", value)
    return value or []


class EmbedBody(_Body):
    """The body of `/api/embed`."""

    model: str
    input: Annotated[list[str], BeforeValidator(_texts, json_schema_input_type=str | list[str] | None)] = []
    """Nothing: the model is loaded."""
    dimensions: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    truncate: Bool = None
    options: Options | None = None
    keep_alive: KeepAlive = None


class EmbeddingsBody(_Body):
    """The body of `/api/embeddings`, which is older and takes one text."""

    model: str
    prompt: str | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None


class NamedBody(_Body):
    """A body that names a model, under either name."""

    model: str | None = None
    name: str | None = None
    verbose: Bool = None
    stream: Bool = None
    insecure: Bool = None

    @property
    def called(self) -> str | None:
        """The model's name."""
        return self.model or self.name


@dataclass(frozen=True)
class OllamaTexts:
    """Texts whose vectors are asked for; no `meant` where the model is only to be loaded."""

    model: str
    meant: EmbeddingRequest | None
    keep_alive: float | None
    ignored: list[str]


EMBED = Surface(
    path="/api/embed",
    name="OllamaEmbed",
    summary="Vectors of texts in Ollama's shape",
    model=EmbedBody,
    example={"input": ["a text", "another"]},
    no_effect=("truncate",),
    streams=False,
)
EMBEDDINGS = Surface(
    path="/api/embeddings",
    name="OllamaEmbeddings",
    summary="The vector of one text in Ollama's older shape",
    model=EmbeddingsBody,
    example={"prompt": "a text"},
    streams=False,
)
SHOW = Surface(
    path="/api/show",
    name="OllamaShow",
    summary="What a model is and can do, in Ollama's shape",
    model=NamedBody,
    example={},
    no_effect=("verbose",),
    takes=("model", "name", "verbose"),
    streams=False,
)
PULL = Surface(
    path="/api/pull",
    name="OllamaPull",
    summary="Fetch a model, as Ollama tells of a download",
    model=NamedBody,
    example={},
    no_effect=("insecure",),
    takes=("model", "name", "stream", "insecure"),
)
TO_EMBEDDINGS = Renames({r"^input\b.*": "prompt"})
_SHARED = ("model", "dimensions", "keep_alive")


def parse_ollama_embed(data: dict[str, Any]) -> OllamaTexts:
    """The checked request for vectors of length 1. Raises ApiError 400."""
    own = check(EmbedBody, data)
    fields = {name: data[name] for name in _SHARED if name in data}
    meant = parse_embedding({**fields, "input": own.input}) if own.input else None
    return _texts_of(own, meant, [name for name in data if name not in EMBED.fields])


def parse_ollama_embeddings(data: dict[str, Any]) -> OllamaTexts:
    """The checked request for a vector as the model gives it. Raises ApiError 400."""
    own = check(EmbeddingsBody, data)
    meant = parse_embedding({"model": own.model, "input": own.prompt, "normalize": False}) if own.prompt else None
    return _texts_of(own, meant, [name for name in data if name not in EMBEDDINGS.fields])


def _texts_of(own: EmbedBody | EmbeddingsBody, meant: EmbeddingRequest | None, unknown: list[str]) -> OllamaTexts:
    given = {} if own.options is None else own.options.model_dump(exclude_unset=True)
    options = [f"options.{name}" for name, value in given.items() if value is not None]
    return OllamaTexts(own.model, meant, own.keep_alive, [*unknown, *options])


def parse_named(data: dict[str, Any]) -> NamedBody:
    """The checked body. Raises ApiError 400."""
    return check(NamedBody, data)
