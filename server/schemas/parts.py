"""What the messages of all surfaces are made of: strict objects, and pieces of text."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from server.schemas.problems import problem


class Strict(BaseModel):
    """An object of a conversation: no value is turned into another type, unknown fields are kept to be named."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class TextPart(Strict):
    """One piece of what was said; only text is served, and what a model has refused to say."""

    kinds: ClassVar[tuple[str, ...]]
    """The types whose `text` is one; the first is the one to send."""
    type: str
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _is_text(self) -> TextPart:
        if self.type not in (*self.kinds, "refusal"):
            raise problem(
                "unsupported_value",
                "Unsupported value: '{param}': parts of this type are not supported by this server; send parts of type "
                "'{kind}'.",
                field=".type",
                kind=self.kinds[0],
            )
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=f".{name}")
        return self

    @property
    def plain(self) -> str:
        """The words of this part."""
        return (self.refusal if self.type == "refusal" else self.text) or ""
