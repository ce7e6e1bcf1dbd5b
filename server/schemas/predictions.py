"""What a client thinks its answer will be, as OpenAI's `prediction` says it: a draft, from which no text follows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from server.schemas.parts import Content, Strict
from server.schemas.problems import wrong_type


def _some(content: Any) -> Any:
    if content is None:
        raise wrong_type("a string or an array of objects", content)
    return content


class Prediction(Strict):
    """What the answer is thought to be."""

    type: Literal["content"]
    content: Annotated[Content, AfterValidator(_some)]

    @property
    def text(self) -> str:
        """In one piece; several parts follow each other as OpenAI joins them, without a line end."""
        return self.content if isinstance(self.content, str) else "".join(part.plain for part in self.content or [])
