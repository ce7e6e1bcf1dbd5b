"""Rendering a conversation with the model's own chat template.

Templates are programs from strangers: they run in jinja2's immutable sandbox, within limits of time, memory and size,
and nothing of them runs while they are compiled.
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
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.engine import JobError
from backends.formats.known import recognise
from backends.formats.thinking import marks_of, options_of
from backends.kernel import at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from jinja2.compiler import Frame
    from jinja2.parser import Parser

MAX_SOURCE_CHARS = 256 << 10
"""Five times the largest that is known; a compiler takes some 7 us and 1 kB for each."""
MAX_OUTPUT_CHARS = 32 << 20
MAX_PRODUCT_CHARS = 1 << 20
MAX_NUMBER_BITS = 1 << 16
"""No clock stops the interpreter inside one multiplication."""
RENDER_LIMIT_S = 2.0
RENDER_LIMIT_BYTES = 256 << 20
MAX_TOLD_CHARS = 300
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


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


class ChatTemplate:
    """One compiled template. Raises JobError(template_error) where the source is no template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            told = f"it has {len(source)} characters, {MAX_SOURCE_CHARS} are the most"
            raise JobError("template_error", f"the model's chat template is broken: {told}")
        self.source = source
        self._special_tokens = dict(special_tokens)
        self.format = recognise(source)
        """How the model writes tool calls."""
        self.marks = marks_of(source)
        """What opens and closes its reasoning."""
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
            raise JobError("template_error", f"the model's chat template is broken: {_told(error)}") from error

    @property
    def options(self) -> list[str]:
        """The switches for reasoning that the template reads."""
        return options_of(self.source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        **kwargs: bool | str | int,
    ) -> str:
        """The prompt, with the beginning of an answer where that is wanted.

        Raises JobError(template_error) for what the template does wrong.
        """
        turns, shown = self.format.adapt([dict(message) for message in messages], [dict(tool) for tool in tools])
        variables = {
            **self._special_tokens,
            "messages": turns if self._takes_system else _without_system(turns),
            "tools": shown or None,
            "add_generation_prompt": add_generation_prompt,
            **kwargs,
        }
        try:
            return self._render_within_limits(variables)
        except _TemplateMessageError as error:
            raise JobError(
                "template_error", f"the chat template refuses this conversation: {_told(error)}", param="prompt"
            ) from error
        except _RenderTimeoutError as error:
            raise JobError("template_error", f"the chat template ran longer than {RENDER_LIMIT_S:g} s") from error
        except MemoryError as error:
            most = RENDER_LIMIT_BYTES >> 20
            raise JobError("template_error", f"the chat template wanted more than {most} MiB of memory") from error
        except Exception as error:  # whatever a stranger's program raises is a fact about the template
            raise JobError(
                "template_error", f"the chat template failed: {type(error).__name__}: {_told(error)}", param="prompt"
            ) from error

    @property
    def _takes_system(self) -> bool:
        """False for templates that raise at a system message (Gemma's, early Mistrals')."""
        alternates_strictly = "must alternate" in self.source and "system" not in self.source
        return "System role not supported" not in self.source and not alternates_strictly

    def _render_within_limits(self, variables: Mapping[str, Any]) -> str:
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
                for part in self._template.generate(variables):
                    parts.append(part)
                    size += len(part)
                    if size > MAX_OUTPUT_CHARS:
                        raise jinja2.TemplateRuntimeError("the rendered prompt is too large")
            finally:
                sys.settrace(previous)
            return "".join(parts)


def _told(error: Exception) -> str:
    """What a template's error says, as long as a sentence may be."""
    text = str(error)
    return text if len(text) <= MAX_TOLD_CHARS else f"{text[:MAX_TOLD_CHARS]}..."


def _without_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system message in front of the first user's words."""
    if not turns or turns[0]["role"] != "system":
        return turns
    system, rest = turns[0], turns[1:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{**system, "role": "user"}, *rest]


class Guard:
    """Keeps control-token literals in user text apart from those the template writes.

    `protect` before rendering, `split` after it: the pieces between control tokens, the users' literals back in place.
    A string that begins or ends with a part of a literal is guarded too: the template may put the rest beside it.
    """

    def __init__(self, literals: Iterable[str]) -> None:
        longest_first = sorted(literals, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._longest_part = max((len(literal) - 1 for literal in longest_first), default=0)
        self._heads = frozenset(
            part for whole in longest_first for i in range(1, len(whole)) if _is_mark(part := whole[:i])
        )
        self._tails = frozenset(
            part for whole in longest_first for i in range(1, len(whole)) if _is_mark(part := whole[i:])
        )

    def protect(self, value: Any) -> tuple[Any, dict[str, str]]:
        """A copy of `value` with every literal replaced, and the replacements (private character -> literal)."""
        stand_ins = _StandIns(value)
        guarded = _map_strings(value, lambda text: self._guard(text, stand_ins), lambda key: self._swap(key, stand_ins))
        return guarded, {char: text for text, char in stand_ins.by_text.items()}

    def _guard(self, text: str, stand_ins: _StandIns) -> str:
        text = self._swap(text, stand_ins)
        lengths = range(min(self._longest_part, len(text)), 0, -1)
        if n := next((n for n in lengths if text[-n:] in self._heads), 0):
            text = text[:-n] + stand_ins.of(text[-n:])
        if n := next((n for n in lengths if text[:n] in self._tails), 0):
            text = stand_ins.of(text[:n]) + text[n:]
        return text

    def _swap(self, text: str, stand_ins: _StandIns) -> str:
        return self._pattern.sub(lambda match: stand_ins.of(match.group()), text) if self._pattern else text

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


class _StandIns:
    """Private-use characters that a value does not hold, each for one text. Raises JobError when none is left."""

    def __init__(self, value: Any) -> None:
        self.by_text: dict[str, str] = {}
        self._free = self._unused(value)

    def of(self, text: str) -> str:
        if text not in self.by_text:
            char = next(self._free, None)
            if char is None:
                message = (
                    "the messages hold every private-use character, so control tokens in them cannot be told apart"
                )
                raise JobError("invalid_value", message, param="prompt")
            self.by_text[text] = char
        return self.by_text[text]

    @staticmethod
    def _unused(value: Any) -> Iterator[str]:
        taken = set().union(*_strings(value))
        yield from (char for char in map(chr, _PRIVATE_USE) if char not in taken)


def _is_mark(part: str) -> bool:
    """Whether a part of a literal is no plain word or space, which templates compare and trim."""
    return any(not char.isalnum() and not char.isspace() for char in part)


def _restore(text: str, sentinels: Mapping[str, str]) -> str:
    return text.translate({ord(sentinel): literal for sentinel, literal in sentinels.items()}) if sentinels else text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _map_strings(value: Any, on_text: Callable[[str], str], on_key: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return on_text(value)
    if isinstance(value, list):
        return [_map_strings(item, on_text, on_key) for item in value]
    if isinstance(value, dict):
        return {on_key(key): _map_strings(item, on_text, on_key) for key, item in value.items()}
    return value
