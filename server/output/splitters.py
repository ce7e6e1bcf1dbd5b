"""What sorts the text of each choice of one job: by what its model says of itself, and how its prompt ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.formats.known import named
from backends.formats.splitter import Splitter, splitter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from backends.messages import Constraint, Ready, Started


def splitters(
    tools: Sequence[dict[str, Any]],
    ready: Ready | None,
    started: Started | None,
    *,
    only: Constraint | None = None,
    new_id: Callable[[], str] | None = None,
) -> Callable[[], Splitter | None]:
    """Makes the splitter of each choice: what this model writes, with these tools offered.

    None where the text needs no sorting. `only` is what the answer has to be. `new_id` names the calls; else the
    model's format does.
    """
    facts = ready.generator if ready is not None else None
    format_ = named(facts.tool_format if facts is not None else None)
    opened = started is not None and started.thinking
    marks = facts.reasoning_marks if facts is not None else None

    def new_splitter() -> Splitter | None:
        return splitter(format_, marks, opened=opened, tools=tools, only=only, new_id=new_id)

    return new_splitter
