"""`POST /v1/rerank`, in the shape that Cohere's and Jina's clients share, and the jobs that a request becomes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from backends.kinds import RERANK
from backends.messages import Rerank
from server.schemas.embeddings import pieces
from server.schemas.fields import INT32_MAX, Bool, KeepAlive, Priority
from server.schemas.problems import check, problem, wrong_type
from server.schemas.surface import Surface


def _documents(value: Any) -> Any:
    """Texts, or objects with a `text`, as texts."""
    if not isinstance(value, list):
        raise wrong_type("an array of strings", value)
    if not value:
        raise problem("empty_array", "Invalid '{param}': empty array. Expected at least one document.")
    if len(value) > RERANK.limits.items:
        raise problem(
            "array_above_max_length",
            "Invalid '{param}': array too long. Expected an array with maximum length {limit}, but got an array with "
            "length {n} instead.",
            limit=RERANK.limits.items,
            n=len(value),
        )
    return [_text(document, f"[{place}]") for place, document in enumerate(value)]


def _text(value: Any, place: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise problem(
            "invalid_type", "Invalid type for '{param}': expected a string or an object with a 'text'.", field=place
        )
    if not text:
        raise problem("empty_string", "Invalid '{param}': the document is empty.", field=place)
    return text


class RerankRequest(BaseModel):
    """The body of `/v1/rerank`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str], BeforeValidator(_documents, json_schema_input_type=list[str | dict[str, Any]])]
    top_n: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    return_documents: Bool = None
    user: str | None = None
    priority: Priority = None
    keep_alive: KeepAlive = None

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return [name for name in self.model_extra or {} if name not in SURFACE.fields]

    def jobs(self, job_id: str) -> list[Rerank]:
        """Jobs of a bounded size, in the order of the documents; each reads the query again for each of them."""
        sizes = [len(self.query) + len(document) for document in self.documents]
        return [
            Rerank(id=f"{job_id}-{start}", query=self.query, documents=self.documents[start:end], first=start)
            for start, end in pieces(sizes)
        ]


SURFACE = Surface(
    path="/v1/rerank",
    name="Rerank",
    summary="Score documents against a query",
    model=RerankRequest,
    example={"query": "Which is a fruit?", "documents": ["an apple", "a car"]},
    # Documents are never cut, and only their text is read.
    refused={"max_tokens_per_doc": (), "max_chunks_per_doc": (), "rank_fields": ()},
    no_effect={"user"},
    streams=False,
)


def parse_rerank(data: dict[str, Any]) -> RerankRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return check(RerankRequest, data)
