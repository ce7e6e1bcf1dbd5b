"""What a kind of jobs differs in outside its own engine and routes; each states it in a `kind.py` of its own folder.

`backends.registry.KINDS` has those of all backends. A kind of a new backend is a `Kind` in the backend's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from backends.messages import (
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EncoderFacts,
    EncoderPlan,
    Event,
    Facts,
    Generate,
    GeneratorFacts,
    GeneratorPlan,
    Job,
    LoadPlan,
    Looked,
    Part,
    Rerank,
    Started,
    Tokenize,
    Tokenized,
)
from backends.weight import TOKEN_BYTES, prompt_bytes, text_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

J = TypeVar("J", bound=Job)
Series = Literal["prefix_cache", "prompt_tokens", "generation_tokens", "token_latency"]
"""What the jobs of a kind count into beside requests, their times and their ends, which all kinds have."""


@dataclass(frozen=True)
class Metric(Generic[J]):
    """A metric that only some kinds of jobs have; each model of the catalogue has a series of it."""

    name: str
    """Without the prefix, and without the `_total` of counters."""
    type: Literal["counter", "histogram"]
    text: str
    """What it counts, for people."""
    adds: Callable[[J, Event], float | None]
    """What an event of a job adds, or one more value of a histogram; None for none. Not asked for deltas of text."""
    edges: tuple[float, ...] = ()
    """Of a histogram's buckets."""


@dataclass(frozen=True)
class Limits:
    """What one request of a kind may hold; a body of JSON has the server's own limit."""

    items: int = 1
    """Prompts, inputs or documents."""
    files: tuple[str, ...] = ()
    """Fields of a form that hold a file, one each."""
    file_bytes: int = 0
    """Of each file."""
    media: tuple[str, ...] = ()
    """Media types that a file may be sent as, such as `audio/wav` or `audio/*`; empty: any."""


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[J]):
    """One kind of job. What runs it in a worker is a `backends.engine.Engine[J]`."""

    name: str
    job: type[J]
    """Its message."""
    parts: tuple[type[Part], ...]
    """What its answer consists of."""
    capability: str | None
    """The word of `/v1/models` for models that run it; None where that cannot be told before a job is tried."""
    gives: str
    """What a model for it answers with, in one word: `text`, `vectors` ...; the `gives` of a header."""
    does: str
    """Of a model for it, to be said behind its name: `is an embedding model`."""
    lacks: str
    """Of any other model: `gives no embeddings`."""
    wanted: str
    """What the operator configures for it: `an embedding model`."""
    paths: tuple[str, ...]
    """Where it is asked for, the usual place first."""
    forms: tuple[str, ...] = ()
    """Those of them that take a form with files; the others take JSON alone."""
    weight: Callable[[J], int]
    """About how many bytes have to be read to prepare a job."""
    facts: type[Facts] | None = None
    """What a model that is for it tells of itself; None where no model is."""
    plan: type[LoadPlan] | None = None
    """How such a model is loaded."""
    series: frozenset[Series] = frozenset()
    metrics: tuple[Metric[J], ...] = ()
    """Those of its own."""
    limits: Limits = Limits()
    params: Mapping[str, str] = field(default_factory=dict)
    """The job's field names as requests have them, where these differ."""
    tool: str = ""
    """`module:name` of the tool of `/v1/responses` that runs it; empty: none."""

    @property
    def surface(self) -> str:
        """Where it is asked for, in a sentence."""
        return f"POST {self.paths[0]}"


AnyKind = Kind[Any]


def _looked(told: Callable[[Looked], float | None]) -> Callable[[Generate, Event], float | None]:
    """What the start of a job whose prompt has images or sounds adds."""

    def adds(_job: Generate, event: Event) -> float | None:
        looked = event.looked if isinstance(event, Started) else None
        return None if looked is None else told(looked)

    return adds


GENERATE: Final = Kind(
    name="generate",
    job=Generate,
    parts=(Delta,),
    capability="completion",
    gives="text",
    does="generates text",
    lacks="writes no text",
    wanted="a model that generates text",
    paths=("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/infill"),
    weight=lambda job: prompt_bytes(job.prompt) + text_bytes(job.prediction),
    facts=GeneratorFacts,
    plan=GeneratorPlan,
    series=frozenset({"prefix_cache", "prompt_tokens", "generation_tokens", "token_latency"}),
    metrics=(
        Metric("images", "counter", "Images and sounds of prompts", _looked(lambda looked: looked.n_media)),
        Metric("image_tokens", "counter", "Tokens that these were counted as", _looked(lambda looked: looked.n_rows)),
        Metric(
            "images_encoded",
            "counter",
            "Those of them that were encoded; the others were known from before",
            _looked(lambda looked: looked.n_encoded),
        ),
        Metric(
            "image_encode_seconds",
            "histogram",
            "Seconds in which the images of a prompt were encoded, where some were not known",
            _looked(lambda looked: looked.encoded_s if looked.n_encoded else None),
            edges=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
        ),
    ),
)
EMBED: Final = Kind(
    name="embed",
    job=Embed,
    parts=(Embedded,),
    capability="embedding",
    gives="vectors",
    does="is an embedding model",
    lacks="gives no embeddings",
    wanted="an embedding model",
    paths=("/v1/embeddings",),
    weight=lambda job: sum(text_bytes(one) if isinstance(one, str) else len(one) * TOKEN_BYTES for one in job.inputs),
    facts=EncoderFacts,
    plan=EncoderPlan,
    series=frozenset({"prompt_tokens"}),
    limits=Limits(items=2048),
    params=MappingProxyType({"inputs": "input"}),
)
RERANK: Final = Kind(
    name="rerank",
    job=Rerank,
    parts=(Embedded,),
    capability="rerank",
    gives="scores",
    does="is a reranker",
    lacks="scores no documents",
    wanted="a reranker",
    paths=("/v1/rerank",),
    weight=lambda job: text_bytes(job.query) * len(job.documents) + text_bytes(job.documents),
    facts=EncoderFacts,
    plan=EncoderPlan,
    series=frozenset({"prompt_tokens"}),
    limits=Limits(items=2048),
)
TOKENIZE: Final = Kind(
    name="tokenize",
    job=Tokenize,
    parts=(Tokenized,),
    capability=None,
    gives="tokens",
    does="counts tokens",
    lacks="has no tokens to count",
    wanted="a model of text",
    paths=("/tokenize",),
    weight=lambda job: prompt_bytes(job.prompt),
)
DETOKENIZE: Final = Kind(
    name="detokenize",
    job=Detokenize,
    parts=(Detokenized,),
    capability=None,
    gives="tokens",
    does="reads tokens",
    lacks="has no tokens to read",
    wanted="a model of text",
    paths=("/detokenize",),
    weight=lambda job: len(job.tokens) * TOKEN_BYTES,
)
OF_TEXT: Final[tuple[AnyKind, ...]] = (GENERATE, EMBED, RERANK, TOKENIZE, DETOKENIZE)
"""Those of a backend that serves models of text, whatever they give."""


def refusal(model: AnyKind, wanted: AnyKind) -> str:
    """Why a model of one kind does not do another's work, to be said behind its name; and what would."""
    return f"{model.does} and {wanted.lacks}. hint: name {wanted.wanted} in 'model', or ask this one: {model.surface}"


def main_kind(kinds: Iterable[AnyKind], capabilities: Iterable[str]) -> AnyKind | None:
    """What a model is for, by what it can; None where it can nothing that is known."""
    can = set(capabilities)
    return next((kind for kind in kinds if kind.capability in can), None)
