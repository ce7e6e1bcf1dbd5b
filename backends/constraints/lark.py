"""The grammar of an answer as text, in llguidance's dialect of Lark; calls are as `backends.formats` has them. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from backends.formats.base import inline
from backends.formats.openings import asks_nothing, parted
from backends.messages import JsonObject, JsonSchema, Pattern, ToolCalls

if TYPE_CHECKING:
    from backends.formats.base import Format
    from backends.formats.openings import Pattern as Opening
    from backends.messages import Constraint

_GAP = "GAP: /(\\r?\\n){0,2}[ ]{0,2}/\nBLANK: /[ ]?/\n"


def lark(constraint: Constraint, format_: Format) -> str:
    """The whole grammar of an answer, reasoning left out."""
    if isinstance(constraint, ToolCalls):
        return _GAP + _with_calls(constraint, format_)
    opening = format_.text_opening
    if isinstance(constraint, Pattern):
        escaped = constraint.regex.replace("/", r"\/")
        return f"start: {opening} BODY\nBODY: /{escaped}/\n"
    return f"start: {opening} content\ncontent: {_content(constraint)}\n"


class _Calls:
    """The calls of a constraint in Lark: rules, and the lines that they refer to.

    An opening is two lexemes: what comes before the name, behind which a text may go on in any way, and the name of
    one of the functions with what makes a call of it. `begun` is captured behind them, `call` where the call is whole.
    """

    def __init__(self, constraint: ToolCalls, format_: Format) -> None:
        self._openings = format_.openings
        self._functions = constraint.functions
        self._ones: dict[Opening, str] = {}
        self.rules = format_.rules(constraint.functions, constraint.parallel)
        self.lines = list(self.rules.lines)
        self.goes_on = constraint.parallel and not self.rules.once
        if self.rules.another is not None:
            self.lines.append(
                "another: " + " | ".join(f"next {one}" for _, one in self.opened("next", self.rules.another))
            )

    def opened(self, name: str, pattern: Opening, *, behind: str = "") -> list[tuple[str, str]]:
        """A rule for what comes before the names, behind a text of this regular expression, and one for the rest."""
        found = []
        for i, (before, then) in enumerate(parted(pattern)):
            lead = f"{name}{i or ''}"
            self.lines.append(f"{lead}[lazy]: /{behind}{self._openings.regex(before)}/")
            found.append((lead, self._one(then)))
        return found

    def called(self, one: str) -> str:
        """The rule for a whole call, and those that belong to it, from its name on."""
        line = f'called_{one}[capture="call"]: {one} {self.rules.after}'
        if line not in self.lines:
            self.lines.append(line)
        return f"called_{one}"

    def turned(self, name: str, *, behind: str = "") -> list[str]:
        """A call that begins with its arguments."""
        if self._openings.turned is None or self.rules.turned is None:
            return []
        self.lines += [
            f'{name}[capture="begun"]: {name}x',
            f"{name}x[lazy]: /{behind}{self._openings.regex(self._openings.turned)}/",
            f'turned[capture="call"]: {self.rules.turned} {self.rules.after}',
        ]
        return [f"{name} turned"]

    def _one(self, then: Opening) -> str:
        """One call from the name on: a function's name, the rest of the opening, and its body."""
        if then not in self._ones:
            one = self._ones[then] = f"one{len(self._ones)}"
            ways, short = [], self._openings.without_arguments(then)
            for i, function in enumerate(self._functions):
                named = self._openings.regex(then, function.name)
                self.lines += [f'{one}n{i}[capture="begun"]: {one}x{i}', f"{one}x{i}[lazy]: /{named}/"]
                ways.append(f"{one}n{i} body{i}")
                if short is not None and asks_nothing(json.loads(function.parameters)):
                    self.lines += [f'{one}s{i}[capture="begun"]: {one}y{i}']
                    self.lines += [f"{one}y{i}[lazy]: /{self._openings.regex(short, function.name)}/"]
                    ways.append(f"{one}s{i}")
            self.lines.append(f"{one}: " + " | ".join(ways))
            if len(self._ones) == 1:
                self.lines += [f"body{i}: {body}" for i, body in enumerate(self.rules.bodies)]
        return self._ones[then]


def _with_calls(constraint: ToolCalls, format_: Format) -> str:
    """Calls among text: once one has certainly begun it is held to its schema, and behind it there is text again."""
    calls = _Calls(constraint, format_)
    any_text = "(?s:.*)"
    leads = calls.opened("lead", format_.openings.marked, behind=any_text)
    bare = [] if format_.openings.bare is None else calls.opened("bare", format_.openings.bare)
    ways = [f"{lead} {calls.called(one)}" for lead, one in leads] + calls.turned("lead_turned", behind=any_text)
    lines = [f"TEXT: /{any_text}/", "mention: " + " | ".join(lead for lead, _ in leads)]
    lines += ["rest: turn* TEXT", f"turn: mention | {' | '.join(ways)}"]
    behind = "rest" if calls.goes_on else ""
    start = [f"{lead} {calls.called(one)} {behind}" for lead, one in bare]
    if not constraint.required and constraint.content is None:
        text = "rest" if calls.goes_on else "mention* TEXT"
        start += [text, *(f"{lead} {text}" for lead, _ in bare)]
        start += [] if calls.goes_on else [f"mention* {way}" for way in ways]
    else:
        heads = calls.opened("head", format_.openings.marked)
        marked = [f"{calls.rules.before} GAP {lead} {calls.called(one)} {behind}" for lead, one in heads]
        if constraint.content is None:
            start += marked
        else:
            # the same space before either, or a line end behind reasoning would decide for a call
            start = [*marked, f"GAP {format_.text_opening} content"]
            lines.append(f"content: {_content(constraint.content)}")
        if constraint.content is not None and calls.rules.among_json is not None:
            start.append(f"GAP among {behind}")
            lines.append(f'among[capture="call"]: {calls.rules.among_json}')
    return "\n".join(["start: " + " | ".join(start), *lines, *calls.lines, ""])


def _content(constraint: JsonObject | JsonSchema) -> str:
    return (
        inline({"type": "object"}) if isinstance(constraint, JsonObject) else json_rule(json.loads(constraint.schema))
    )


def json_rule(schema: Any) -> str:
    """A client's schema in Lark; `true` and `false` are schemas, too."""
    return inline(schema if isinstance(schema, dict) else {} if schema else {"not": {}})
