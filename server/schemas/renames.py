"""Surfaces other than chat completions become a chat request; here its fields get their names on that surface back.

So every surface has one meaning of messages, tools and formats, and an error names what the client really sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from server.errors import ApiError
from server.schemas.chat import ChatRequest, parse_meaning

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Renames:
    """Chat completions' field names, as patterns, to a surface's own; the first pattern that fits is taken."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._patterns = [(re.compile(pattern), name) for pattern, name in patterns.items()]

    def name(self, param: str) -> str:
        """The surface's name of a field."""
        for pattern, name in self._patterns:
            renamed, n = pattern.subn(name, param, count=1)
            if n:
                return renamed
        return param

    def names(self, params: Iterable[str]) -> list[str]:
        """The surface's names of several fields."""
        return [self.name(param) for param in params]

    def params(self, params: Mapping[str, str]) -> dict[str, str]:
        """A route's table from a job's fields, in the surface's names."""
        return {field: self.name(param) for field, param in params.items()}

    def error(self, problem: ApiError) -> ApiError:
        """The same problem in the surface's words."""
        if problem.param is None or (name := self.name(problem.param)) == problem.param:
            return problem
        message = problem.message.replace(f"'{problem.param}'", f"'{name}'")
        return ApiError(
            problem.status,
            message,
            type=problem.type,
            param=name,
            code=problem.code,
            headers=problem.headers,
            details=problem.details,
        )

    def parse(self, chat: dict[str, Any]) -> ChatRequest:
        """The checked chat request. Raises ApiError 400 in the surface's words."""
        try:
            return parse_meaning(chat)
        except ApiError as problem:
            raise self.error(problem) from None


TO_RESPONSES = Renames(
    {
        r"^messages\b.*": "input",
        r"^max_(completion_)?tokens": "max_output_tokens",
        r"^(tools\[\d*\])\.function\b": r"\1",
        r"^tool_choice\.function\b": "tool_choice",
        r"^tool_choice\.allowed_tools\b": "tool_choice",
        r"^response_format\.json_schema\b": "text.format",
        r"^response_format\b": "text.format",
        r"^verbosity$": "text.verbosity",
        r"^reasoning_effort$": "reasoning.effort",
        r"^logprobs$": "include",
    }
)
TO_MESSAGES = Renames(
    {
        r"^stop\b": "stop_sequences",
        r"^messages\b.*": "messages",
        r"^continue_final_message$": "messages",
        r"^(tools\[\d*\])\.function\.parameters\b": r"\1.input_schema",
        r"^(tools\[\d*\])\.function\b": r"\1",
        r"^tool_choice\.function\b": "tool_choice",
        r"^parallel_tool_calls$": "tool_choice.disable_parallel_tool_use",
        r"^response_format\.json_schema\b": "output_config.format",
        r"^response_format\b": "output_config.format",
        r"^reasoning_effort$": "thinking",
        r"^thinking_budget$": "thinking.budget_tokens",
        r"^chat_template_kwargs\b.*": "thinking",
    }
)
