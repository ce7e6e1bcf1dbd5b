"""`POST /v1/fine_tuning/jobs`: the body. Fields of ours stand among the hyperparameters."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from server.errors import ApiError
from server.schemas.problems import check, problem
from server.schemas.surface import Surface
from server.tuning.job import Wanted

_SUFFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Auto = Literal["auto"]


def _suffix(text: str) -> str:
    if _SUFFIX.fullmatch(text) is None:
        raise problem(
            "invalid_value",
            "Invalid '{param}': it becomes part of a model's name, so it has 1 to 64 letters, digits, '.', '_' or '-'.",
        )
    return text


def _supervised(kind: str) -> str:
    if kind != "supervised":
        raise problem(
            "unsupported_parameter",
            "Unsupported value: '{param}' is '{kind}', and this server trains by 'supervised' examples alone.",
            kind=kind[:40],
        )
    return kind


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Hyperparameters(_Part):
    """Of the training; `auto` and null leave one to the server."""

    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | Auto = "auto"
    method: Literal["auto", "lora", "qlora", "full"] = "auto"
    """`lora` and `qlora` make an adapter, `full` a model; auto: `lora` where it fits, else `qlora`."""
    quantization: Literal["nf4", "8bit"] | None = None
    """Of the base beneath a `qlora`."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)] | None = None
    """null: twice the rank."""
    targets: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=64)] = []
    """Ends of the names of linear layers, such as `q_proj`; empty: all of them."""
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] | Auto = "auto"
    """Tokens of one example."""
    cut_long: bool = False
    """Cut an example that is longer; else it ends the job with its line's number."""
    packing: bool = False
    evaluation_share: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] | None = None
    """Of the training file, kept back where there is no validation file."""
    gradient_checkpointing: bool | Auto = "auto"
    micro_batch: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    """Examples computed at once; `batch_size` is made of several."""
    checkpoint_every_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """0: by time alone."""
    checkpoint_every_s: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = 300.0


class _Supervised(_Part):
    hyperparameters: Hyperparameters | None = None


class Method(_Part):
    """How is taught: by examples."""

    type: Annotated[str, AfterValidator(_supervised), WithJsonSchema({"enum": ["supervised"], "type": "string"})]
    supervised: _Supervised | None = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class FineTuningRequest(BaseModel):
    """The body of `/v1/fine_tuning/jobs`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=300)]
    training_file: Annotated[str, Field(min_length=1, max_length=200)]
    validation_file: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    suffix: Annotated[str, AfterValidator(_suffix)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    hyperparameters: Hyperparameters | None = None
    """As older clients send them, beside no `method`."""
    method: Method | None = None
    metadata: Metadata | None = None

    def wanted(self) -> Wanted:
        """What was asked for. Raises ApiError 400 where it contradicts itself."""
        inner = None if self.method is None or self.method.supervised is None else self.method.supervised
        asked = None if inner is None else inner.hyperparameters
        if asked is not None and self.hyperparameters is not None:
            told = "'hyperparameters' stand beside those of 'method'. hint: leave the outer ones out"
            raise ApiError(400, told, param="hyperparameters", code="invalid_value")
        given = (asked or self.hyperparameters or Hyperparameters()).model_dump()
        plain: dict[str, Any] = {
            name: None if value == "auto" and name != "method" else value for name, value in given.items()
        }
        wanted = msgspec.convert(plain, Wanted)
        _check_together(wanted)
        if wanted.evaluation_share and self.validation_file is not None:
            told = "'evaluation_share' is of the training file, and a 'validation_file' is given. hint: leave one out"
            raise ApiError(400, told, param="evaluation_share", code="invalid_value")
        return wanted


def _check_together(wanted: Wanted) -> None:
    batch, micro = wanted.batch_size, wanted.micro_batch
    if batch is not None and micro is not None and batch % micro:
        told = f"'micro_batch' is {micro}, and a batch of {batch} is no multiple of it."
        raise ApiError(400, told, param="micro_batch", code="invalid_value")
    if wanted.quantization is not None and wanted.method in ("lora", "full"):
        told = f"'quantization' is for the base beneath a 'qlora', and 'method' is '{wanted.method}'."
        raise ApiError(400, told, param="quantization", code="invalid_value")
    if wanted.method == "full":
        given = (
            ("targets", bool(wanted.targets)),
            ("rank", wanted.rank != Wanted().rank),
            ("alpha", bool(wanted.alpha)),
        )
        for name in (name for name, is_given in given if is_given):
            raise ApiError(400, f"'{name}' is an adapter's, and 'method' is 'full'.", param=name, code="invalid_value")


SURFACE: Final = Surface(
    path="/v1/fine_tuning/jobs",
    name="FineTuning",
    summary="Teach a model from a file of examples, in memory that no request needs",
    model=FineTuningRequest,
    example={"model": "chat", "training_file": "file-1", "suffix": "pirate"},
    refused={"integrations": ([],)},
    streams=False,
    asks_model=False,
)


def parse_fine_tuning(data: dict[str, Any]) -> FineTuningRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return check(FineTuningRequest, data)
