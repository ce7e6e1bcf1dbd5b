"""Tools of `/v1/responses` that this server runs itself: what a client wants of one, and the function it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from server.output.items import Change, HostedCall


class HostedTool(Protocol):
    """One kind of them. Its name is the tool's `type`, and that of the function that the model is shown."""

    function: Mapping[str, Any]
    """As chat completions have it: name, description, parameters."""

    def wished(self, app: Any, tool: Mapping[str, Any]) -> Wish | None:
        """What the client wants of it; None where nothing here can run it. Raises ApiError 400 or 404."""
        ...


@dataclass(frozen=True)
class Wish:
    """One tool of one request."""

    tool: HostedTool
    sent: Mapping[str, Any]
    """As the client has written it."""
    run: Callable[[HostedCall], AsyncGenerator[Change]]
    """The events of one call, to its end."""
    ignored: Sequence[str] = field(default=())
    """Its fields that have no effect."""

    @property
    def name(self) -> str:
        """Its `type`."""
        return str(self.tool.function["name"])


Wishes = dict[str, Wish]
"""By the tool's `type`."""


def as_function(tool: Any, wishes: Mapping[str, Wish]) -> Any:
    """The function in chat completions' shape that stands for such a tool; any other tool as it is."""
    wish = wishes.get(str(tool.get("type"))) if isinstance(tool, dict) else None
    return tool if wish is None else {"type": "function", "function": dict(wish.tool.function)}


def as_choice(choice: Any, wishes: Mapping[str, Wish]) -> Any:
    """The same of a `tool_choice`, of responses' shape."""
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        return {**choice, "tools": [as_choice(tool, wishes) for tool in choice["tools"]]}
    return {"type": "function", "name": kind} if kind in wishes else choice
