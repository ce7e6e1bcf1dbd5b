"""One mapper from what pydantic finds wrong to the error OpenAI would send.

Owns codes, sentences and parameter paths; knows no field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from server.errors import ApiError, clip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)

_MAX_PATH_CHARS = 200
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "float_type": "a decimal",
    "float_parsing": "a decimal",
    "bool_type": "a boolean",
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def problem(code: str, template: str, /, **context: Any) -> PydanticCustomError:
    """A failure a validator raises: `template` is the sentence with `{param}` for the field's path.

    `field` in the context is added to that path where the fault lies deeper than the validator.
    """
    return PydanticCustomError("api", "{template}", {"template": template, "code": code, **context})


def wrong_type(expected: str, value: object, *, field: str = "") -> PydanticCustomError:
    """A value of the wrong JSON type; `field` as in `problem`."""
    return problem(
        "invalid_type",
        "Invalid type for '{param}': expected {expected}, but got {got} instead.",
        expected=expected,
        got=json_kind(value),
        field=field,
    )


def check(model: type[M], data: Mapping[str, Any]) -> M:
    """The validated model. Raises ApiError 400 for the first thing that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        raise to_api_error(failure.errors(include_url=False)[0]) from None


def to_api_error(error: ErrorDetails) -> ApiError:
    """The error OpenAI would send for one pydantic error."""
    param = path(error["loc"]) + error.get("ctx", {}).get("field", "")
    code, sentence = _describe(error, param)
    return ApiError(400, sentence, param=param, code=code)


def path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].role`; tags of unions are written `<tag>` and are no part of it."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step.startswith("<"):
            text += ("." if text else "") + clip(step)
    return text[:_MAX_PATH_CHARS]


def json_kind(value: object) -> str:
    """What JSON calls a value, with its article."""
    if value is None:
        return "null"
    kinds: list[tuple[type, str]] = [
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a decimal"),
        (str, "a string"),
        (list, "an array"),
    ]
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "an object")


def _describe(error: ErrorDetails, param: str) -> tuple[str, str]:
    """Code and sentence."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "api":
        details = {name: entry for name, entry in context.items() if name not in ("template", "code")}
        return context["code"], context["template"].format(param=param, **details)
    if kind == "missing":
        return "missing_required_parameter", f"Missing required parameter: '{param}'."
    if kind == "extra_forbidden":
        return "unknown_parameter", f"Unknown parameter: '{param}'."
    if kind == "finite_number" or (kind == "float_type" and type(value) is int):  # an integer that no float can hold
        number = float(value) if isinstance(value, str) else value  # a form's fields are text
        side, short, long = ("above", "max", "maximum") if number > 0 else ("below", "min", "minimum")
        sentence = f"Invalid '{param}': decimal {side} {long} value. Expected a finite number."
        return f"decimal_{side}_{short}_value", sentence
    if kind in _EXPECTED:
        return "invalid_type", (
            f"Invalid type for '{param}': expected {_EXPECTED[kind]}, but got {json_kind(value)} instead."
        )
    if kind in _BOUNDS:
        return _out_of_bounds(kind, value, context, param)
    if kind == "literal_error" and not isinstance(value, str):
        expected = f"one of {context['expected']}"
        return "invalid_type", f"Invalid type for '{param}': expected {expected}, but got {json_kind(value)} instead."
    if kind == "literal_error":
        return "invalid_value", f"Invalid value: '{clip(value)}'. Supported values are: {context['expected']}."
    return _wrong_length(kind, context, param)


_BOUNDS = {
    "greater_than_equal": ("below", "min", "minimum", ">=", "ge"),
    "greater_than": ("below", "min", "minimum", ">", "gt"),
    "less_than_equal": ("above", "max", "maximum", "<=", "le"),
    "less_than": ("above", "max", "maximum", "<", "lt"),
}


def _out_of_bounds(kind: str, value: Any, context: Mapping[str, Any], param: str) -> tuple[str, str]:
    side, short, long, sign, key = _BOUNDS[kind]
    bound = context[key]
    number = "integer" if isinstance(value, int) and isinstance(bound, int) else "decimal"
    shown = f"{bound:g}" if isinstance(bound, float) else str(bound)
    return f"{number}_{side}_{short}_value", (
        f"Invalid '{param}': {number} {side} {long} value. "
        f"Expected a value {sign} {shown}, but got {clip(value)} instead."
    )


def _wrong_length(kind: str, context: Mapping[str, Any], param: str) -> tuple[str, str]:
    noun = "array" if kind in ("too_long", "too_short") else "string"
    article = f"{'an' if noun == 'array' else 'a'} {noun}"
    if kind in ("too_long", "string_too_long"):
        limit, length = context["max_length"], context.get("actual_length")
        got = f"{article} with length {length}" if length is not None else f"a longer {noun}"
        return f"{noun}_above_max_length", (
            f"Invalid '{param}': {noun} too long. "
            f"Expected {article} with maximum length {limit}, but got {got} instead."
        )
    if kind in ("too_short", "string_too_short"):
        return f"empty_{noun}", (
            f"Invalid '{param}': empty {noun}. Expected {article} with minimum length {context['min_length']}, "
            f"but got an empty {noun} instead."
        )
    if kind == "string_pattern_mismatch":
        wanted = f"Expected a string that matches the pattern '{context['pattern']}'."
        return "invalid_value", f"Invalid '{param}': string does not match pattern. {wanted}"
    return "invalid_value", f"Invalid value for '{param}'."
