"""Rendering a conversation with the model's own chat template.

Templates are programs from strangers: `template_program` runs them within limits, `renderer` in a process of its own.
User text cannot become a control token: `Guard.protect` swaps the literals of control tokens in every string that a
user gave for private-use characters before the template runs, so that the literals in the result are its own.
Knows no tokenizer.
"""

from __future__ import annotations

import itertools
import re
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from backends.engine import JobError
from backends.formats.known import recognise
from backends.formats.thinking import marks_of, options_of
from backends.prompts import renderer
from backends.prompts.template_forms import forms, with_parts
from backends.prompts.template_program import RENDER_LIMIT_BYTES, RENDER_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from backends.formats.base import Json
    from backends.prompts.template_program import Outcome

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class ChatTemplate:
    """One template. Raises JobError(template_error) where the source is none."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._rendering = renderer.program_of(source)
        if (wrong := self._rendering.check()) is not None:
            raise self._job_error(wrong)
        self.format = recognise(source)
        """How the model writes tool calls."""
        self.marks = marks_of(source)
        """What opens and closes its reasoning."""

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
        if not self._takes_system:
            turns = _without_system(turns)
        variables = {**self._special_tokens, "add_generation_prompt": add_generation_prompt, **kwargs}
        outcome = self._run_some_form(turns, shown, variables)
        if outcome.problem is not None:
            raise self._job_error(outcome)
        return outcome.text

    @staticmethod
    def _job_error(outcome: Outcome) -> JobError:
        """What is said of a run that gave no prompt."""
        match outcome.problem:
            case "refused":
                return _template_error(f"the chat template refuses this conversation: {outcome.text}", param="prompt")
            case "time":
                return _template_error(f"the chat template ran longer than {RENDER_LIMIT_S:g} s{outcome.text}")
            case "memory":
                return _template_error(
                    f"the chat template wanted more than {RENDER_LIMIT_BYTES >> 20} MiB of memory{outcome.text}"
                )
            case "broken":
                return _template_error(f"the model's chat template is broken: {outcome.text}")
        return _template_error(f"the chat template failed: {outcome.text}", param="prompt")

    def _run_some_form(self, turns: list[Json], tools: list[Json], variables: Json) -> Outcome:
        """What came of the first form that the template survives; where it survives none, of the first."""
        first: Outcome | None = None
        as_parts: list[Callable[[list[Json]], list[Json]]] = [with_parts, partial(with_parts, beside_calls=True)]
        shapes = as_parts if self._reads_parts else [list]
        for (messages, shown), shape in itertools.product(forms(turns, tools), shapes):
            outcome = self._rendering.run({**variables, "messages": shape(messages), "tools": shown or None})
            first = first or outcome
            if outcome.problem not in ("failed", "refused"):
                return outcome
        assert first is not None
        return first

    @cached_property
    def _reads_parts(self) -> bool:
        """It writes what a list of parts says, and nothing of a plain text."""
        if "content" not in self.source or "text" not in self.source:
            return False
        said = "A7f"
        plain = [{"role": "user", "content": said}]
        shown = []
        for messages in (plain, with_parts(plain)):
            variables = {**self._special_tokens, "messages": messages, "tools": None, "add_generation_prompt": True}
            shown.append(said in self._rendering.run(variables).text)
        return shown == [False, True]

    def around_image(self, mark: str) -> str:
        """The mark of an image with what the template writes around it in a user's turn; the mark alone where it writes
        images in no way of its own.
        """
        said = {"type": "text", "text": "A7f"}
        shown: list[str] = []
        for content in ([said], [{"type": "image"}, said]):
            turn = {"role": "user", "content": content}
            variables = {**self._special_tokens, "messages": [turn], "tools": None, "add_generation_prompt": False}
            shown.append(self._rendering.run(variables).text)
        without, shows = shown
        n_before = _n_alike(without, shows)
        n_behind = _n_alike(reversed(without[n_before:]), reversed(shows[n_before:]))
        written = shows[n_before : len(shows) - n_behind]
        return written if written.count(mark) == 1 and "A7f" not in written else mark

    @property
    def _takes_system(self) -> bool:
        """False for templates that raise at a system message (Gemma's, early Mistrals')."""
        alternates_strictly = "must alternate" in self.source and "system" not in self.source
        return "System role not supported" not in self.source and not alternates_strictly


def _n_alike(one: Iterable[str], other: Iterable[str]) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _template_error(message: str, *, param: str | None = None) -> JobError:
    return JobError("template_error", message, param=param)


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
        taken = set().union(*strings_of(value))
        yield from (char for char in map(chr, _PRIVATE_USE) if char not in taken)


def _is_mark(part: str) -> bool:
    """Whether a part of a literal is no plain word or space, which templates compare and trim."""
    return any(not char.isalnum() and not char.isspace() for char in part)


def _restore(text: str, sentinels: Mapping[str, str]) -> str:
    return text.translate({ord(sentinel): literal for sentinel, literal in sentinels.items()}) if sentinels else text


def strings_of(value: Any) -> Iterator[str]:
    """Every string in plain data, the names of objects among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item)


def _map_strings(value: Any, on_text: Callable[[str], str], on_key: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return on_text(value)
    if isinstance(value, list):
        return [_map_strings(item, on_text, on_key) for item in value]
    if isinstance(value, dict):
        return {on_key(key): _map_strings(item, on_text, on_key) for key, item in value.items()}
    return value
