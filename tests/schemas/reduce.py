"""Makes `openai.json`: what OpenAI's published API description says of the answers this server gives, and no more.

    python -m tests.schemas.reduce openapi.json

The whole description is published under the MIT licence by OpenAI at https://github.com/openai/openai-openapi; convert
its YAML to JSON first. Run it again when a newer one is out, and see what the tests say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("openai.json")
ROOTS = (
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateEmbeddingResponse",
    "ListModelsResponse",
    "Model",
    "CreateTranscriptionResponseJson",
    "CreateTranscriptionResponseVerboseJson",
    "CreateTranslationResponseJson",
    "CreateTranslationResponseVerboseJson",
    "TranscriptTextDeltaEvent",
    "TranscriptTextDoneEvent",
    "ErrorResponse",
    "Response",
    "ResponseCreatedEvent",
    "ResponseInProgressEvent",
    "ResponseCompletedEvent",
    "ResponseIncompleteEvent",
    "ResponseFailedEvent",
    "ResponseOutputItemAddedEvent",
    "ResponseOutputItemDoneEvent",
    "ResponseContentPartAddedEvent",
    "ResponseContentPartDoneEvent",
    "ResponseTextDeltaEvent",
    "ResponseTextDoneEvent",
    "ResponseReasoningTextDeltaEvent",
    "ResponseReasoningTextDoneEvent",
    "ResponseFunctionCallArgumentsDeltaEvent",
    "ResponseFunctionCallArgumentsDoneEvent",
)
KINDS = {
    "OutputItem": ("OutputMessage", "FunctionToolCall", "ReasoningItem", "CompactionBody"),
    "Tool": ("FunctionTool",),
}
"""Of these unions only the members that are ever answered."""
_PREFIX = "#/components/schemas/"
_WORDS = ("description", "title", "example", "examples", "default", "deprecated", "discriminator")


def reduced(document: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the answers and of what they refer to, without words."""
    schemas = document["components"]["schemas"]
    found: dict[str, Any] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _bare(_of_kinds(name, schemas[name]), waiting)
    return {
        "source": "https://github.com/openai/openai-openapi, MIT licence, Copyright (c) OpenAI",
        "version": document["info"]["version"],
        "components": {"schemas": dict(sorted(found.items()))},
    }


def _of_kinds(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name not in KINDS:
        return schema
    union = "oneOf" if "oneOf" in schema else "anyOf"
    wanted = {_PREFIX + kind for kind in KINDS[name]}
    return {"anyOf": [member for member in schema[union] if member.get("$ref") in wanted]}


def _bare(value: Any, waiting: list[str], *, names: bool = False) -> Any:
    """The schema without words; `names`: the keys are names of properties, not of keywords."""
    if isinstance(value, list):
        return [_bare(item, waiting) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(reference := value.get("$ref"), str):
        waiting.append(reference.removeprefix(_PREFIX))
    bare = {
        key: _bare(item, waiting, names=key == "properties" and not names)
        for key, item in value.items()
        if names or not (key in _WORDS or key.startswith("x-"))
    }
    if names or not bare.pop("nullable", False):
        return bare
    return {"anyOf": [bare, {"type": "null"}]}  # as JSON schema says it


if __name__ == "__main__":
    made = reduced(json.loads(Path(sys.argv[1]).read_text()))
    TARGET.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n")
