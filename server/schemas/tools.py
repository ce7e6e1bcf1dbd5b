"""The tools a client offers: checked, and the ones of kinds we do not know left out by name.

Owns what `tools` and `tool_choice` may hold; the output side is `server.output`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.errors import ApiError, clip, unsupported_parameter
from server.schemas.problems import problem, wrong_type

MAX_TOOLS = 128
_KIND = re.compile(r"[a-z_0-9]{1,32}")


class Function(BaseModel):
    """A function a model may call; `parameters` is a JSON schema that is shown to the model as it is."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _parameters_are_an_object(self) -> Function:
        kind = (self.parameters or {}).get("type", "object")
        if kind != "object":
            raise problem(
                "invalid_function_parameters",
                "Invalid schema for function '{name}': '{param}' must be 'object'.",
                field=".parameters.type",
                name=self.name,
            )
        return self


class Tool(BaseModel):
    """A tool of any kind; only functions are offered to the model."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: str
    function: Function | None = None

    @model_validator(mode="before")
    @classmethod
    def _other_kinds_are_free(cls, value: Any) -> Any:
        """What a tool of a kind we leave out holds is not ours to judge."""
        if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] != "function":
            return {"type": value["type"]}
        return value

    @model_validator(mode="after")
    def _function_is_there(self) -> Tool:
        if self.type == "function" and self.function is None:
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=".function")
        return self

    def plain(self) -> dict[str, Any]:
        """The form templates take."""
        function = (
            self.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
            if self.function
            else {}
        )
        return {"type": "function", "function": function}


def _choice(value: Any) -> Any:
    if isinstance(value, dict):
        raise problem(
            "unsupported_parameter",
            "Unsupported parameter: '{param}' naming a tool is not supported by this server; use 'auto' or 'none'.",
        )
    if value == "required":
        raise problem(
            "unsupported_parameter",
            "Unsupported parameter: '{param}' with 'required' is not supported by this server; use 'auto' or 'none'.",
        )
    if value is not None and not isinstance(value, str):
        raise wrong_type("a string", value)
    return value


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
ToolChoice = Annotated[Literal["auto", "none"] | None, BeforeValidator(_choice)]


def offered(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """The functions a model is shown. Raises ApiError 400 where two have one name."""
    functions = [tool.plain() for tool in tools or [] if tool.type == "function"]
    names = [function["function"]["name"] for function in functions]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ApiError(
                400, f"Invalid 'tools': two functions are named '{clip(name)}'.", param="tools", code="invalid_value"
            )
    return functions


def without_effect(tools: list[Tool] | None) -> list[str]:
    """Fields of functions that the model is not shown, as `tools[].function.name`, each once."""
    functions = [tool.function for tool in tools or [] if tool.function is not None]
    strict = ["strict"] if any(function.strict for function in functions) else []
    unknown = sorted({name for function in functions for name in function.model_extra or {}})
    return [f"tools[].function.{name}" for name in [*strict, *unknown]]


def skipped(tools: list[Tool] | None) -> list[str]:
    """The kinds of tools that were left out, fit for the log: a kind that is no plain word is `other`."""
    kinds = {tool.type for tool in tools or [] if tool.type != "function"}
    return sorted({kind if _KIND.fullmatch(kind) else "other" for kind in kinds})


def require_hermes(tool_format: str | None) -> None:
    """Refuse tools for a model whose template has none. Raises ApiError 400."""
    if tool_format != "hermes":
        raise unsupported_parameter("tools", "is not supported with this model: its chat template has no tools.")
