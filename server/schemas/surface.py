"""A surface that takes a body: its path, its model, and the few fields that are refused or have no effect.

Every other field is the model's own and is honoured. Owns what is done with a field by name; types are the models'.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from server.errors import unsupported_parameter

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic import BaseModel

Neutral = tuple[Any, ...]
"""Values of a refused field that ask for nothing; null always does."""


class Use(enum.Enum):
    """What this server does with a known request field."""

    HONOURED = "honoured"
    HARMLESS = "accepted; it does not change the output"
    NEUTRAL_ONLY = "accepted where it asks for nothing, refused by name otherwise"


ELSEWHERE: dict[str, Neutral] = dict.fromkeys(
    (
        "conversation",
        "previous_message_id",
        "previous_response_id",
        "parent_message_id",
        "thread",
        "thread_id",
        "memory_id",
    ),
    (),
)
"""Fields of other servers and surfaces that say where the rest of the messages is: never merely named in a header."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """One path."""

    path: str
    name: str
    """A word for the names of its schemas."""
    summary: str
    model: type[BaseModel]
    example: Mapping[str, Any]
    """A body, without its `model` where it has one, as `/docs` offers it."""
    refused: Mapping[str, Neutral] = field(default_factory=dict)
    """Fields that would change what is answered and are not served, unless the model has them."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Refused fields to what does the same here."""
    no_effect: Collection[str] = ()
    """Fields that are accepted and change no answer."""
    shared: Collection[str] = ()
    """Fields that are checked as chat completions' own."""
    takes: Collection[str] | None = None
    """The fields of the model that count here; None: all of them."""
    required: Collection[str] = ()
    """Fields that must be there beside those the model requires."""
    streams: bool = True
    asks_model: bool = True
    """Whether the body names the model that answers."""

    @cached_property
    def fields(self) -> Mapping[str, Use]:
        """Every field that is known here."""
        own = self.takes if self.takes is not None else [*self.model.model_fields]
        return {
            **dict.fromkeys(self.refused, Use.NEUTRAL_ONLY),
            **dict.fromkeys([*own, *self.shared], Use.HONOURED),
            **dict.fromkeys(self.no_effect, Use.HARMLESS),
        }

    def named(self, use: Use) -> list[str]:
        """The fields with which this is done."""
        return [name for name, its in self.fields.items() if its is use]

    def refuse(self, data: Mapping[str, Any]) -> None:
        """Refuse by name the first refused field that asks for something. Raises ApiError 400."""
        for name in self._refused:
            value = data.get(name)
            if value is None or any(_same(value, asks_nothing) for asks_nothing in self.refused[name]):
                continue
            if name in self.instead:
                raise unsupported_parameter(name, f"is not supported by this server; use {self.instead[name]}.")
            raise unsupported_parameter(name)

    @cached_property
    def _refused(self) -> list[str]:
        return self.named(Use.NEUTRAL_ONLY)


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON has it: 0 is no false, and 1 no true."""
    return type(value) is type(other) and value == other
