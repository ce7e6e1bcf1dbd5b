"""A chat template as a program from strangers: compiled without running it, run within limits of time, memory and size.

It runs in jinja2's immutable sandbox. Python's lines are timed here; what one line makes the interpreter do in C is
timed by `backends.prompts.renderer`, which runs this in a process that can be ended.
"""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.machine.kernel import at_most
from backends.prompts.template_forms import with_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from jinja2.compiler import Frame
    from jinja2.parser import Parser

MAX_SOURCE_CHARS: Final = 256 << 10
"""Five times the largest that is known; a compiler takes some 7 us and 1 kB for each."""
MAX_OUTPUT_CHARS: Final = 32 << 20
MAX_PRODUCT_CHARS: Final = 1 << 20
MAX_NUMBER_BITS: Final = 1 << 16
RENDER_LIMIT_S: Final = 2.0
RENDER_LIMIT_BYTES: Final = 256 << 20
MAX_TOLD_CHARS: Final = 300

Problem = Literal["broken", "refused", "time", "memory", "failed"]


class Outcome(msgspec.Struct, frozen=True):
    """What became of one run: the text, or what is wrong and what is said of it."""

    text: str = ""
    problem: Problem | None = None
    error: str = ""
    """The class of what was raised, for who tries again; never shown."""


class _RenderTimeoutError(Exception):
    """The template ran longer than it may."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; serving renders its body as it is."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Generator(CodeGenerator):
    """Leaves every expression to the rendering: what is computed here, no limit holds."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:  # noqa: N802
        if not all(isinstance(option.value, nodes.Const) for option in node.options):
            raise jinja2.TemplateSyntaxError("autoescape takes true or false", node.lineno)
        super().visit_EvalContextModifier(node, frame)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with products and powers bounded as well."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(right) > 64 or _bits(left) * right > MAX_NUMBER_BITS):
            raise jinja2.TemplateRuntimeError("a power in the chat template is too large")
        if operator == "*":
            if _bits(left) + _bits(right) > MAX_NUMBER_BITS:
                raise jinja2.TemplateRuntimeError("a product in the chat template is too large")
            _check_product(left, right)
            _check_product(right, left)
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


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


class BrokenTemplateError(Exception):
    """The source is no template; the message says why."""


class Program:
    """One compiled template. Raises BrokenTemplateError."""

    def __init__(self, source: str) -> None:
        env = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        env.filters["tojson"] = _tojson
        env.filters["format"] = _format
        env.globals["raise_exception"] = _raise_exception
        env.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
        try:
            self._template = env.from_string(source)
        except Exception as error:  # jinja2's, and whatever the code it makes of a stranger's text is to Python
            raise BrokenTemplateError(_told(error)) from error

    def run(self, variables: Mapping[str, Any]) -> Outcome:
        """Render it once."""
        try:
            return Outcome(self._within_limits(variables))
        except _TemplateMessageError as error:
            return Outcome(_told(error), "refused", type(error).__name__)
        except _RenderTimeoutError as error:
            return Outcome("", "time", type(error).__name__)
        except MemoryError as error:
            return Outcome("", "memory", type(error).__name__)
        except Exception as error:  # whatever a stranger's program raises is a fact about the template
            return Outcome(_told(error), "failed", type(error).__name__)

    def _within_limits(self, variables: Mapping[str, Any]) -> str:
        deadline = time.monotonic() + RENDER_LIMIT_S

        def watch(frame: FrameType, event: str, arg: object) -> Any:
            if time.monotonic() > deadline:
                raise _RenderTimeoutError
            return watch

        parts: list[str] = []
        size = 0
        previous = sys.gettrace()
        with at_most(RENDER_LIMIT_BYTES):
            sys.settrace(watch)
            try:
                for part in self._template.generate(
                    {**variables, "messages": with_arguments(variables.get("messages"))}
                ):
                    parts.append(part)
                    size += len(part)
                    if size > MAX_OUTPUT_CHARS:
                        raise jinja2.TemplateRuntimeError("the rendered prompt is too large")
            finally:
                sys.settrace(previous)
            return "".join(parts)


def compiled(source: str) -> Program | Outcome:
    """The program, or what is wrong with its source."""
    if len(source) > MAX_SOURCE_CHARS:
        return Outcome(f"it has {len(source)} characters, {MAX_SOURCE_CHARS} are the most", "broken")
    try:
        return Program(source)
    except BrokenTemplateError as error:
        return Outcome(str(error), "broken")


def _told(error: BaseException) -> str:
    """What a template's error says, as long as a sentence may be."""
    text = str(error) or _SILENT.get(type(error).__name__, "it ended without saying why")
    return text if len(text) <= MAX_TOLD_CHARS else f"{text[:MAX_TOLD_CHARS]}..."


_SILENT: Final = {
    "RecursionError": "it calls itself without an end",
    "MemoryError": "it is nested too deeply",
    "StopIteration": "it asks for more items than there are",
}
