"""Rendering a conversation with the model's own chat template.

Templates are programs from strangers: they run in jinja2's immutable sandbox, with a time and a size limit.
User text cannot become a control token: `Guard.protect` swaps the literals of control tokens in every string that a
user gave for private-use characters before the template runs, so that the literals in the result are its own.
Knows no tokenizer.
"""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.engine import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import FrameType

    from jinja2.parser import Parser

MAX_OUTPUT_CHARS = 32 << 20
MAX_PRODUCT_CHARS = 1 << 20
RENDER_LIMIT_S = 2.0
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class _RenderTimeoutError(Exception):
    """The template ran longer than it may."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; serving renders its body as it is."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with products and powers bounded as well."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > 64:
            raise jinja2.TemplateRuntimeError("a power in the chat template is too large")
        if operator == "*":
            _check_product(left, right)
            _check_product(right, left)
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)


def _check_product(sequence: Any, times: Any) -> None:
    if (
        isinstance(sequence, (str, list, tuple))
        and isinstance(times, int)
        and len(sequence) * times > MAX_PRODUCT_CHARS
    ):
        raise jinja2.TemplateRuntimeError("a product in the chat template is too large")


def _check_widths(pattern: str) -> None:
    if any(len(digits) > 4 for digits in re.findall(r"\d+", pattern)):
        raise jinja2.TemplateRuntimeError("a field width in the chat template is too large")


class _TemplateMessageError(Exception):
    """The template called raise_exception: its sentence is about the conversation."""


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateMessageError(message)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _format(pattern: str, *args: Any, **kwargs: Any) -> str:
    _check_widths(pattern)
    return pattern % (kwargs or args)


class ChatTemplate:
    """One compiled template. Raises JobError(template_error) where the source is no template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        env.filters["tojson"] = _tojson
        env.filters["format"] = _format
        env.globals["raise_exception"] = _raise_exception
        env.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
        try:
            self._template = env.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise JobError("template_error", f"the model's chat template is broken: {error}") from error

    @property
    def tool_format(self) -> str | None:
        """`hermes` when tool calls are written in <tool_call> tags, None when the template ignores tools."""
        return "hermes" if "<tool_call>" in self.source and "tools" in self.source else None

    @property
    def can_think(self) -> bool:
        """The template has a switch for reasoning."""
        return "enable_thinking" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        **kwargs: bool | str | int,
    ) -> str:
        """The prompt, generation prompt appended. Raises JobError(template_error) for what the template does wrong."""
        variables = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": [dict(tool) for tool in tools] or None,
            "add_generation_prompt": True,
            **kwargs,
        }
        try:
            return self._render_within_limits(variables)
        except _TemplateMessageError as error:
            raise JobError(
                "template_error", f"the chat template refuses this conversation: {error}", param="prompt"
            ) from error
        except _RenderTimeoutError as error:
            raise JobError("template_error", f"the chat template ran longer than {RENDER_LIMIT_S:g} s") from error
        except Exception as error:  # whatever a stranger's program raises is a fact about the template
            raise JobError(
                "template_error", f"the chat template failed: {type(error).__name__}: {error}", param="prompt"
            ) from error

    def _render_within_limits(self, variables: Mapping[str, Any]) -> str:
        deadline = time.monotonic() + RENDER_LIMIT_S

        def watch(frame: FrameType, event: str, arg: object) -> Any:
            if time.monotonic() > deadline:
                raise _RenderTimeoutError
            return watch

        parts: list[str] = []
        size = 0
        previous = sys.gettrace()
        sys.settrace(watch)
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT_CHARS:
                    raise jinja2.TemplateRuntimeError("the rendered prompt is too large")
        finally:
            sys.settrace(previous)
        return "".join(parts)


class Guard:
    """Keeps control-token literals in user text apart from those the template writes.

    `protect` before rendering, `split` after it: the pieces between control tokens, the users' literals back in place.
    """

    def __init__(self, literals: Iterable[str]) -> None:
        longest_first = sorted(literals, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def protect(self, value: Any) -> tuple[Any, dict[str, str]]:
        """A copy of `value` with every literal replaced, and the replacements (private character -> literal)."""
        text = json.dumps(value, ensure_ascii=False)
        if self._pattern is None or not self._pattern.search(text):
            return value, {}
        taken = {char for char in text if ord(char) in _PRIVATE_USE}
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        sentinels: dict[str, str] = {}

        def swap(match: re.Match[str]) -> str:
            return sentinels.setdefault(match.group(), next(free))

        guarded = _map_strings(value, lambda string: self._pattern.sub(swap, string) if self._pattern else string)
        return guarded, {sentinel: literal for literal, sentinel in sentinels.items()}

    def split(self, rendered: str, sentinels: Mapping[str, str]) -> list[tuple[str, bool]]:
        """`(text, is_control)` pieces of a rendered prompt in order; control pieces are literals the template wrote."""
        pieces: list[tuple[str, bool]] = []
        at = 0
        for match in self._pattern.finditer(rendered) if self._pattern else ():
            if match.start() > at:
                pieces.append((_restore(rendered[at : match.start()], sentinels), False))
            pieces.append((match.group(), True))
            at = match.end()
        if at < len(rendered):
            pieces.append((_restore(rendered[at:], sentinels), False))
        return pieces


def _restore(text: str, sentinels: Mapping[str, str]) -> str:
    return text.translate({ord(sentinel): literal for sentinel, literal in sentinels.items()}) if sentinels else text


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    return value
