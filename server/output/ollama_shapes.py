"""The shapes of what Ollama's clients read, for `/openapi.json`. A test holds what is sent against them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from server.output.shapes import TokenLogprobs


class OllamaFunction(TypedDict):
    """What is called; its arguments are an object."""

    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(TypedDict):
    """One call that the client is to make."""

    id: str
    function: OllamaFunction


class OllamaMessage(TypedDict):
    """What the model said, or a piece of it."""

    role: Literal["assistant"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[OllamaCall]]


class _Line(TypedDict):
    model: str
    created_at: str
    done: bool
    done_reason: NotRequired[Literal["stop", "length", "load", "unload"]]
    logprobs: NotRequired[list[TokenLogprobs]]
    total_duration: NotRequired[int]
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    prompt_eval_duration: NotRequired[int]
    eval_count: NotRequired[int]
    eval_duration: NotRequired[int]


class OllamaChat(_Line):
    """An answer to a conversation, or a piece of it; durations are nanoseconds."""

    message: OllamaMessage


class OllamaText(_Line):
    """An answer to one prompt, or a piece of it; durations are nanoseconds."""

    response: str
    thinking: NotRequired[str]


class OllamaVectors(TypedDict):
    """Vectors of length 1."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaVector(TypedDict):
    """A vector as the model gives it; empty where there was no text."""

    embedding: list[float]


class OllamaVersion(TypedDict):
    """The version of Ollama's API that is spoken, and whose server it is."""

    version: str
    server: str


class OllamaDetails(TypedDict):
    """What a model's files say of it."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(TypedDict):
    """One model of the configuration."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails
    capabilities: list[str]


class OllamaModels(TypedDict):
    """All of them."""

    models: list[OllamaModel]


class OllamaResident(TypedDict):
    """A model that is loaded."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaResidents(TypedDict):
    """All that are."""

    models: list[OllamaResident]


class OllamaShown(TypedDict):
    """What a model is and can do."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: NotRequired[str]


class OllamaPulled(TypedDict):
    """How far it is; of a file its size and how much of it has come, in bytes."""

    status: str
    digest: NotRequired[str]
    total: NotRequired[int]
    completed: NotRequired[int]
