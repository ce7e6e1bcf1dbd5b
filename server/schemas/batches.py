"""`POST /v1/batches`: the body."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from server.errors import ApiError
from server.schemas.problems import check, problem
from server.schemas.surface import Surface

ENDPOINTS: Final = (
    *("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"),
    *("/v1/messages", "/v1/rerank"),
)
"""What a batch may ask: OpenAI's own, and those of ours that answer a body of JSON as quietly."""
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,2})(h|d)")
_UNIT_S: Final = {"h": 3600, "d": 86400}
LONGEST_S: Final = 30 * 86400
SHORTEST_S: Final = 3600
DEFAULT_LIFETIME_S: Final = 30 * 86400
"""Of files of a batch, as OpenAI has it."""


def _endpoint(path: str) -> str:
    if path not in ENDPOINTS:
        raise problem("invalid_value", "Invalid '{param}': a batch asks one of {paths}.", paths=", ".join(ENDPOINTS))
    return path


class ExpiresAfter(BaseModel):
    """When a file goes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_S, le=LONGEST_S)]


class BatchRequest(BaseModel):
    """The body of `/v1/batches`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    input_file_id: Annotated[str, Field(min_length=1, max_length=200)]
    endpoint: Annotated[str, AfterValidator(_endpoint), WithJsonSchema({"enum": [*ENDPOINTS], "type": "string"})]
    completion_window: str
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None

    @property
    def window_s(self) -> int:
        """How long its lines may take. Raises ApiError 400."""
        found = _WINDOW.fullmatch(self.completion_window)
        seconds = 0 if found is None else int(found[1]) * _UNIT_S[found[2]]
        if not 0 < seconds <= LONGEST_S:
            told = "Invalid 'completion_window': hours or days are expected, such as '24h' or '3d', 30 days at most."
            raise ApiError(400, told, param="completion_window", code="invalid_value")
        return seconds


SURFACE = Surface(
    path="/v1/batches",
    name="Batch",
    summary="Run the requests of a file while the server has nothing else to do",
    model=BatchRequest,
    example={"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    streams=False,
    asks_model=False,
)


def parse_batch(data: dict[str, Any]) -> BatchRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return check(BatchRequest, data)
