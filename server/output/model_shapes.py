"""The shapes of what the server tells of itself and of its models, for `/openapi.json`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ModelMeta(TypedDict):
    """Where clients of llama.cpp look for the context."""

    n_ctx: int | None
    n_ctx_train: int | None


class ModelObject(TypedDict):
    """OpenAI's fields, and the ones in which different clients look for the context."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None
    max_model_len: int | None
    meta: ModelMeta
    state: str
    unusable: str | None
    backend: str
    sampling: dict[str, float]
    system: str | None
    remarks: list[str]
    capabilities: list[str]
    aliases: list[str]
    parent: str | None
    """The model that an adapter changes; null for a model."""


class ModelList(TypedDict):
    """Every model."""

    object: Literal["list"]
    data: list[ModelObject]


class Health(TypedDict):
    """How the server is."""

    status: Literal["ok", "ready"]


class GenerationSettings(TypedDict):
    """What a request may rely on."""

    n_ctx: int | None
    params: dict[str, float]


class Modalities(TypedDict):
    """What beside text a model reads."""

    vision: bool
    audio: bool


class Props(TypedDict):
    """What clients of llama.cpp ask of a model."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    modalities: Modalities
    build_info: str
    role: NotRequired[Literal["router"]]
    chat_template_caps: NotRequired[dict[str, bool]]
    is_sleeping: NotRequired[bool]


class UsageLine(TypedDict):
    """What one key has used of one model on one day."""

    day: str
    key: str
    model: str
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class UsageList(TypedDict):
    """In order of day, key and model."""

    object: Literal["list"]
    data: list[UsageLine]


class LeaseObject(TypedDict):
    """Memory that is lent."""

    id: str
    name: str
    bytes: int
    seconds_left: float
    object: Literal["memory.lease"]


class LeaseList(TypedDict):
    """Everything that is lent now."""

    object: Literal["list"]
    data: list[LeaseObject]


class LeaseEnded(TypedDict):
    """A lease that is over."""

    id: str
    object: Literal["memory.lease"]
    ended: bool


class DeletedModel(TypedDict):
    """A model that is gone."""

    id: str
    object: Literal["model"]
    deleted: bool
