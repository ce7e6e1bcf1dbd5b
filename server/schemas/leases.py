"""`POST /v1/memory/lease`: the body."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from server.schemas.problems import check, problem
from server.schemas.surface import Surface
from server.settings.sizes import parse_size

LONGEST_S = 7 * 86400


def _size(value: object) -> int:
    try:
        n_bytes = parse_size(value)
    except ValueError as why:
        raise problem("invalid_value", f"Invalid '{{param}}': {why}.") from None
    if not n_bytes:
        raise problem("invalid_value", "Invalid '{param}': nothing is asked for.")
    return n_bytes


def _printable(name: str) -> str:
    if not name.isprintable():
        raise problem("invalid_value", "Invalid '{param}': it has a control character.")
    return name


class LeaseRequest(BaseModel):
    """The body of `/v1/memory/lease`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: Annotated[
        int,
        BeforeValidator(_size),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["6GiB"]}]}),
    ]
    seconds: Annotated[float, Field(gt=0, le=LONGEST_S, allow_inf_nan=False)] = 300
    name: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)] = "lease"


class RenewRequest(BaseModel):
    """The body of `/v1/memory/lease/{id}`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0, le=LONGEST_S, allow_inf_nan=False)] = 300


SURFACE = Surface(
    path="/v1/memory/lease",
    name="Lease",
    summary="Lend memory of the budget to another program for a while",
    model=LeaseRequest,
    example={"bytes": "6GiB", "seconds": 300, "name": "comfyui"},
    streams=False,
    asks_model=False,
)
RENEWAL = Surface(
    path="/v1/memory/lease/{id}",
    name="Renewal",
    summary="Have a lease hold for so long from now on",
    model=RenewRequest,
    example={"seconds": 300},
    streams=False,
    asks_model=False,
)


def parse_lease(data: dict[str, Any]) -> LeaseRequest:
    """The checked request. Raises ApiError 400."""
    return check(LeaseRequest, data)


def parse_renewal(data: dict[str, Any]) -> RenewRequest:
    """The checked request. Raises ApiError 400."""
    return check(RenewRequest, data)
