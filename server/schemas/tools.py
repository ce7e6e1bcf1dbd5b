"""The tools a client offers: checked. What is no function is refused, or left out by name where a surface says so.

Owns what `tools` and `tool_choice` may hold; the output side is `server.output`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from backends.messages import Function as JobFunction
from backends.messages import JsonObject, JsonSchema, ToolCalls
from server.errors import ApiError, clip
from server.schemas.json_schema import Checked, checked
from server.schemas.problems import problem, wrong_type

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TOOLS = 512
"""Some 50 KiB of grammar; a schema of its own bounds what each may cost."""
_KIND = re.compile(r"[a-z_0-9]{1,32}")


class Function(BaseModel):
    """A function a model may call; `parameters` is a JSON schema that is shown to the model as it is."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,256}$")]
    """OpenAI's letters, and more of them: the names of MCP servers' tools are longer than its 64."""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    _cleared: Checked | None = PrivateAttr(None)

    def cleared(self, param: str) -> Checked:
        """The schema of the arguments as it is enforced. Raises ApiError 400."""
        if self._cleared is None:
            self._cleared = checked(self.parameters or {}, param, strict=bool(self.strict))
        return self._cleared

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


class NamedFunction(BaseModel):
    """A function that is named and no more."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: str


class NamedTool(BaseModel):
    """`{"type": "function", "function": {"name": ...}}`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(BaseModel):
    """Some of the tools, in one of two moods."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(BaseModel):
    """`{"type": "allowed_tools", "allowed_tools": {...}}`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice(value: Any) -> Any:
    if value is not None and not isinstance(value, str | dict):
        raise wrong_type("a string or an object", value)
    if isinstance(value, dict) and value.get("type") not in ("function", "allowed_tools"):
        raise problem(
            "invalid_value",
            "Invalid value for '{param}': expected 'function' or 'allowed_tools'.",
            field=".type",
        )
    return value


def _kind_of_choice(value: Any) -> str:
    if isinstance(value, dict):
        return "<allowed>" if value.get("type") == "allowed_tools" else "<named>"
    return "<word>"


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"] | None, Tag("<word>")]
    | Annotated[NamedTool, Tag("<named>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(_kind_of_choice),
    BeforeValidator(_choice),
]


def offered(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """The functions a model is shown. Raises ApiError 400 where two have one name."""
    functions = [tool.plain() for tool in tools or [] if tool.type == "function"]
    names = [function["function"]["name"] for function in functions]
    for name, count in Counter(names).items():
        if count > 1:
            raise ApiError(
                400, f"Invalid 'tools': two functions are named '{clip(name)}'.", param="tools", code="invalid_value"
            )
    return functions


def calls(
    tools: list[Tool] | None,
    choice: NamedTool | AllowedChoice | str | None,
    *,
    parallel: bool,
    content: JsonObject | JsonSchema | None,
) -> ToolCalls | None:
    """What the model may call; None where it may call nothing. Raises ApiError 400."""
    offered(tools)
    functions = [
        _callable(tool.function, f"tools[{i}].function.parameters")
        for i, tool in enumerate(tools or [])
        if tool.function is not None
    ]
    if choice == "none":
        return None
    wanted = _wanted(choice)
    if wanted is not None:
        functions = [_find(name, functions) for name in wanted]
    required = choice == "required" or isinstance(choice, NamedTool)
    required = required or (isinstance(choice, AllowedChoice) and choice.allowed_tools.mode == "required")
    if required and not functions:
        raise ApiError(
            400,
            "Invalid 'tool_choice': a call is required, and 'tools' offers no function.",
            param="tool_choice",
            code="invalid_value",
        )
    if not functions:
        return None
    parallel = parallel and not isinstance(choice, NamedTool)
    return ToolCalls(functions=functions, required=required, parallel=parallel, content=content)


def _callable(function: Function, param: str) -> JobFunction:
    return JobFunction(name=function.name, parameters=function.cleared(param).text, param=param)


def _wanted(choice: NamedTool | AllowedChoice | str | None) -> list[str] | None:
    """The names a choice is about; None for all."""
    if isinstance(choice, NamedTool):
        return [choice.function.name]
    if isinstance(choice, AllowedChoice):
        return list(dict.fromkeys(tool.function.name for tool in choice.allowed_tools.tools))
    return None


def _find(name: str, functions: list[JobFunction]) -> JobFunction:
    for function in functions:
        if function.name == name:
            return function
    raise ApiError(
        400,
        f"Invalid 'tool_choice': '{clip(name)}' is not among the functions in 'tools'.",
        param="tool_choice",
        code="invalid_value",
    )


def without_effect(tools: list[Tool] | None) -> list[str]:
    """What is not shown to the model or not enforced, each once: `tools[kind]`, `tools[].function.name` and so on."""
    functions = [tool.function for tool in tools or [] if tool.function is not None]
    unknown = sorted({name for function in functions for name in function.model_extra or {}})
    kinds = [f"tools[{kind}]" for kind in skipped(tools)]
    left_out = {keyword for function in functions for keyword in function.cleared("tools").unenforced}
    return [
        *kinds,
        *(f"tools[].function.{name}" for name in unknown),
        *(f"tools[].function.parameters.{keyword}" for keyword in sorted(left_out)),
    ]


def refuse_kinds(tools: Sequence[Any] | None, tolerated: re.Pattern[str] | None = None) -> None:
    """Refuse tools that are no functions, but for the kinds that a surface's clients always offer. Raises ApiError 400.

    `tools` may be unchecked; what has no kind is not judged here.
    """
    for i, tool in enumerate(tools or []):
        kind = tool.type if isinstance(tool, Tool) else tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind == "function" or (tolerated is not None and tolerated.fullmatch(kind)):
            continue
        raise ApiError(
            400,
            f"Unsupported value: 'tools[{i}].type': this server has no tools of type '{clip(kind)}'; offer functions, "
            "which the client runs.",
            param=f"tools[{i}].type",
            code="unsupported_value",
        )


def skipped(tools: list[Tool] | None) -> list[str]:
    """The kinds of tools that were left out, fit for the log: a kind that is no plain word is `other`."""
    kinds = {tool.type for tool in tools or [] if tool.type != "function"}
    return sorted({kind if _KIND.fullmatch(kind) else "other" for kind in kinds})
