"""What an answer has to be: `response_format`, and the fields by which other servers' clients ask for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jiter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backends.messages import Constraint, JsonObject, JsonSchema, JsonWhitespace, Pattern
from server.errors import ApiError, unsupported_parameter
from server.schemas.json_schema import check_pattern, checked
from server.schemas.problems import problem, wrong_type

MAX_CHOICES = 1_000
MAX_CHOICE_CHARS = 4_096


class SchemaFormat(BaseModel):
    """`response_format.json_schema`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, populate_by_name=True)
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,256}$")] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """`response_format`; `schema` beside `json_object` is llama.cpp's spelling."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, populate_by_name=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=".json_schema")
        return self

    @property
    def constraint(self) -> JsonObject | JsonSchema | None:
        """What it asks for. Raises ApiError 400."""
        if self.type == "json_schema" and self.json_schema is not None and self.json_schema.schema_ is not None:
            return json_schema(self.json_schema.schema_, "response_format.json_schema.schema")
        if self.type == "json_object" and self.schema_ is not None:
            return json_schema(self.schema_, "response_format.schema")
        return None if self.type == "text" else JsonObject()


def json_schema(schema: Any, param: str) -> JsonSchema:
    """A checked schema, also as JSON text, as a constraint. Raises ApiError 400."""
    if isinstance(schema, str):
        try:
            schema = jiter.from_json(schema.encode("utf-8", "replace"), allow_inf_nan=False)
        except ValueError:
            raise ApiError(400, f"Invalid '{param}': it is no JSON.", param=param, code="invalid_json_schema") from None
    return JsonSchema(schema=checked(schema, param).text, param=param)


def pattern(regex: Any, param: str) -> Pattern:
    """A checked regular expression as a constraint. Raises ApiError 400."""
    check_pattern(regex, param)
    return Pattern(regex=regex, param=param)


def choice(texts: Any, param: str) -> Pattern:
    """One of some texts. Raises ApiError 400."""
    fits = isinstance(texts, list) and 0 < len(texts) <= MAX_CHOICES
    if not fits or not all(isinstance(text, str) and 0 < len(text) <= MAX_CHOICE_CHARS for text in texts):
        sentence = f"Invalid '{param}': expected 1 to {MAX_CHOICES} texts of at most {MAX_CHOICE_CHARS} characters."
        raise ApiError(400, sentence, param=param, code="invalid_value")
    return Pattern(regex="|".join(f"({_literally(text)})" for text in texts), param=param)


def _literally(text: str) -> str:
    return "".join(char if char.isalnum() else rf"\x{{{ord(char):X}}}" for char in text)


_MAKERS: Mapping[str, Any] = {
    "json_schema": json_schema,
    "guided_json": json_schema,
    "guided_regex": pattern,
    "guided_choice": choice,
}
INSTEAD_OF_GRAMMARS = dict.fromkeys(
    ("grammar", "guided_grammar"), "'response_format', 'guided_regex' or 'guided_choice'"
)
"""What a client that asks for a grammar can ask for here."""
_STRUCTURED: Mapping[str, Any] = {"json": json_schema, "regex": pattern, "choice": choice}


def _structured_outputs(value: Any) -> Any:
    """vLLM's `structured_outputs`: one of `json`, `regex`, `choice`, `json_object`."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    for name, setting in value.items():
        if setting is not None and name not in (*_STRUCTURED, "json_object"):
            raise problem(
                "unsupported_parameter", "Unsupported parameter: '{param}' is not supported.", field=f".{name}"
            )
    return value


_STRUCTURED_NAMES = ", ".join(f"'{name}'" for name in (*_STRUCTURED, "json_object"))


class AnswerFields(BaseModel):
    """The fields of chat and text completions that say what an answer has to be; at most one may."""

    response_format: ResponseFormat | None = None
    json_whitespace: JsonWhitespace | None = None
    """White space in JSON that is asked for; the model's configuration where a client says nothing."""
    json_schema: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: Annotated[dict[str, Any] | None, BeforeValidator(_structured_outputs)] = None

    def answer(self) -> Constraint | None:
        """What the answer has to be. Raises ApiError 400."""
        asked: list[tuple[str, Constraint]] = []
        if self.response_format is not None and (constraint := self.response_format.constraint) is not None:
            asked.append(("response_format", constraint))
        for name, make in _MAKERS.items():
            if (value := getattr(self, name)) is not None:
                asked.append((name, make(value, name)))
        asked += self._structured()
        if len(asked) > 1:
            first, second = asked[0][0], asked[1][0]
            said = f"'{first}' already says what the answer has to be"
            raise ApiError(
                400,
                f"Invalid '{second}': {said if first != second else f'it takes one of {_STRUCTURED_NAMES}'}.",
                param=asked[1][0],
                code="invalid_parameter_combination",
            )
        return asked[0][1] if asked else None

    def _structured(self) -> list[tuple[str, Constraint]]:
        given = {name: value for name, value in (self.structured_outputs or {}).items() if value is not None}
        made: list[tuple[str, Constraint]] = []
        for name, value in given.items():
            if name == "json_object":
                made += [("structured_outputs", JsonObject())] if value else []
            else:
                made.append(("structured_outputs", _STRUCTURED[name](value, f"structured_outputs.{name}")))
        return made


def with_tools(constraint: Constraint | None) -> JsonObject | JsonSchema | None:
    """What text beside tools may be restricted to. Raises ApiError 400 for a pattern."""
    if isinstance(constraint, Pattern):
        raise unsupported_parameter(constraint.param, "together with 'tools' is not supported by this server.")
    assert constraint is None or isinstance(constraint, JsonObject | JsonSchema)
    return constraint
