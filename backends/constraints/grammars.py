"""Compiles a job's constraint, in the format of one model, to masks over its vocabulary.

Owns llguidance: its limits, the cache of compiled grammars and the words of its refusals. What a grammar says of calls
is `backends.formats`'; reasoning, which no grammar sees, is `backends.constraints.guides`'.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits

from backends.constraints.json_lines import JsonLines, LineTable
from backends.constraints.lark import json_rule, lark
from backends.engine import JobError
from backends.formats.base import compact
from backends.machine.kernel import ALONE, USUAL_MEMORY_LIMIT, memory_limit
from backends.messages import JsonSchema, Pattern, ToolCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llguidance import LLTokenizer
    from numpy.typing import NDArray

    from backends.constraints.vocabulary import ConstraintVocabulary
    from backends.formats.base import Format
    from backends.messages import Constraint

T = TypeVar("T")

MAX_CACHED = 32
_STACK_BYTES = 256 << 20
"""llguidance goes down a schema and its references by recursion, 10 kB a level, and there may be 20 000 levels."""
_SEARCH_S = 0.3
"""For finding the part of a refused schema that is at fault; then the innermost one known is named."""
_WHERE = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")
"""A place in a grammar that no client has seen."""
_encode = msgspec.json.Encoder(order="deterministic").encode


def _limits() -> LLParserLimits:
    """Bounds of time and memory: at most some 20 ms for one mask and 100 MB for one grammar's lexer."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        max_items_in_row=10_000,
        verbose_errors=False,
    )


class Mask:
    """See `backends.constraints.masks.TokenMask`; one text under one grammar."""

    def __init__(self, matcher: LLMatcher, n_vocab: int, lines: JsonLines | None) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._lines = lines

    def allowed(self) -> NDArray[np.bool_]:
        """`(n_vocab,) bool`. Raises JobError where the grammar is too costly here."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)
        if self._lines is not None:
            self._lines.restrict(allowed)
        return allowed

    def accept(self, token: int) -> None:
        """Advance by an allowed token, or an end."""
        self._matcher.consume_token(token)
        self._check()
        if self._lines is not None:
            self._lines.feed(token)

    def copy(self) -> Mask:
        """The same text so far, without a watch over its line ends."""
        return Mask(self._matcher.deep_copy(), self._n_vocab, None)

    def accepts(self, token: int) -> bool:
        """Whether the token is allowed."""
        return bool(self._matcher.validate_tokens([token]) == 1)

    def n_fitting(self, tokens: list[int]) -> int:
        """How many of these tokens are allowed one after the other."""
        return int(self._matcher.validate_tokens(tokens))

    def forced(self) -> list[int]:
        """The usual spelling of the bytes that have to follow; empty where there is a choice."""
        return [] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())

    def try_accept(self, token: int) -> bool:
        """Advance where the token is allowed; False where it is not."""
        if not self.accepts(token):
            return False
        self.accept(token)
        return True

    @property
    def ended(self) -> bool:
        """Nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def begun(self) -> bool:
        """The text holds the certain beginning of a tool call."""
        return self._matcher.get_capture("begun") is not None

    @property
    def called(self) -> bool:
        """The text holds a tool call."""
        return self._matcher.get_capture("call") is not None

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise JobError("invalid_value", f"the answer's form became too costly to enforce: {reason}")


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar with its first mask computed; sequences start from copies."""

    matcher: LLMatcher
    n_vocab: int
    lines: Callable[[], JsonLines] | None = None
    """Makes what watches a text's line ends and numbers; None where there is no JSON."""

    def start(self) -> Mask:
        """A mask at the beginning of a text."""
        return Mask(self.matcher.deep_copy(), self.n_vocab, self.lines() if self.lines is not None else None)


class Compiler:
    """The grammars of one model, compiled once each. `compile` is for one thread at a time, masks are not."""

    def __init__(self, vocabulary: Callable[[], ConstraintVocabulary], format_: Format) -> None:
        self._make_vocabulary = vocabulary
        self._format = format_
        self._tokenizer: LLTokenizer | None = None
        self._vocabulary: ConstraintVocabulary | None = None
        self._table: LineTable | None = None
        self._n_vocab = 0
        self._cache: OrderedDict[bytes, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint, *, without_space: bool = False) -> CompiledGrammar:
        """The grammar, from the cache where it is known. Raises JobError for what cannot be enforced.

        `without_space`: JSON is written without white space.
        """
        key = _encode((constraint, without_space))
        with self._lock:
            if (known := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return known
            made = _on_deep_stack(lambda: self._compile(constraint, without_space=without_space))
            self._cache[key] = made
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
            return made

    def warm(self) -> None:
        """Make the tokenizer and the tokens with line ends ahead of the first constraint."""
        with self._lock:
            self._ready_tokenizer()
            self._ready_table()

    def _ready_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            vocabulary = self._ready_vocabulary()
            self._n_vocab = len(vocabulary.pieces)
            self._tokenizer = vocabulary.tokenizer()
        return self._tokenizer

    def _ready_table(self) -> LineTable:
        if self._table is None:
            self._table = LineTable(self._ready_vocabulary().pieces)
        return self._table

    def _ready_vocabulary(self) -> ConstraintVocabulary:
        if self._vocabulary is None:
            self._vocabulary = self._make_vocabulary()
        return self._vocabulary

    def _compile(self, constraint: Constraint, *, without_space: bool) -> CompiledGrammar:
        text = lark(constraint, self._format)
        matcher = self._matcher(compact(text) if without_space else text)
        if isinstance(matcher, str):
            raise self._refusal(constraint, matcher)
        return CompiledGrammar(matcher, self._n_vocab, self._new_lines(constraint))

    def _new_lines(self, constraint: Constraint) -> Callable[[], JsonLines] | None:
        if isinstance(constraint, Pattern):
            return None
        table = self._ready_table()
        if not isinstance(constraint, ToolCalls):
            return lambda: JsonLines(table, at_once=True)
        is_json = constraint.content is not None
        if not self._format.writes_json:
            return (lambda: JsonLines(table, at_once=True)) if is_json else None
        tools = [{"name": function.name} for function in constraint.functions]
        return lambda: JsonLines(table, at_once=is_json, calls=self._format.read(tools, alone=is_json))

    def _matcher(self, lark: str) -> LLMatcher | str:
        """A matcher whose first mask has been computed, or why there is none."""
        matcher = LLMatcher(self._ready_tokenizer(), LLMatcher.grammar_from_lark(lark), log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            return _reason(matcher.get_error())
        return "nothing can satisfy it" if matcher.is_stopped() and not matcher.is_accepting() else matcher

    def _refusal(self, constraint: Constraint, reason: str) -> JobError:
        """The error that names the part of the schema at fault."""
        if isinstance(constraint, Pattern):
            message = f"the pattern cannot be enforced: {reason}"
            return JobError("invalid_value", message, param=constraint.param)
        for place, schema in _schemas(constraint):
            if (fault := self._fault(schema)) is not None:
                path, why = fault
                shown = _printable(place + path)
                return JobError("invalid_value", f"Invalid schema at '{shown}': {why}.", param=shown)
        param = "tools" if isinstance(constraint, ToolCalls) else "response_format"
        return JobError("invalid_value", f"the answer's form cannot be enforced: {reason}", param=param)

    def _fault(self, schema: Any) -> tuple[str, str] | None:
        """Path and reason of the innermost part of a schema that does not compile; None where all of it does."""
        reason = self._reason_against(schema)
        if reason is None:
            return None
        root, path, deadline = schema, "", time.monotonic() + _SEARCH_S
        while time.monotonic() < deadline:
            for step, child in _children(schema):
                if time.monotonic() > deadline:
                    return path, reason
                if (deeper := self._reason_against(_rooted(child, root))) is not None:
                    schema, path, reason = child, path + step, deeper
                    break
            else:
                break
        return path, reason

    def _reason_against(self, schema: Any) -> str | None:
        made = self._matcher(f"start: {json_rule(schema)}\n")
        return made if isinstance(made, str) else None


def _on_deep_stack(work: Callable[[], T]) -> T:
    """The result of work, done on a stack that no schema overflows; the memory it takes goes back with the thread.

    For one thread at a time, because the size of a stack is set for all of the process; not within
    `kernel.at_most`, under whose limit the stack would count. Raises RuntimeError there.
    """
    with ALONE:
        if memory_limit() != USUAL_MEMORY_LIMIT:
            raise RuntimeError("a grammar is compiled within kernel.at_most, where its thread may find no room")
        usual = threading.stack_size(_STACK_BYTES)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar") as executor:
            try:
                made = executor.submit(work)  # starts the thread
            finally:
                threading.stack_size(usual)
    return made.result()


def _schemas(constraint: Constraint) -> Iterator[tuple[str, Any]]:
    """Each schema of a constraint with the name of its place."""
    if isinstance(constraint, JsonSchema):
        yield constraint.param, json.loads(constraint.schema)
    elif isinstance(constraint, ToolCalls):
        for function in constraint.functions:
            yield function.param, json.loads(function.parameters)
        if constraint.content is not None:
            yield from _schemas(constraint.content)


def _children(schema: Any) -> Iterator[tuple[str, Any]]:
    """The subschemas of a schema, each with its step in a path."""
    if not isinstance(schema, dict):
        return
    for key in ("$defs", "definitions", "properties", "patternProperties"):
        if isinstance(group := schema.get(key), dict):
            for name, child in group.items():
                yield f".{key}.{name}", child
    for key in ("items", "additionalProperties", "not", "contains"):
        if isinstance(child := schema.get(key), dict):
            yield f".{key}", child
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(group := schema.get(key), list):
            for i, child in enumerate(group):
                yield f".{key}[{i}]", child


def _rooted(child: Any, root: Any) -> Any:
    """A subschema with the definitions it may refer to."""
    if not isinstance(child, dict) or not isinstance(root, dict):
        return child
    return {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **child}


def _reason(error: str) -> str:
    """llguidance's reason, its first line that says something."""
    lines = [line.strip() for line in error.splitlines()]
    said = [line for line in lines if line.startswith("error:")] or [line for line in lines if line]
    if not said:
        return "no reason given"
    if "oneOf constraints are not supported" in said[0]:
        return "its branches are not provably exclusive; anyOf can be enforced"
    return _WHERE.sub("", said[0].removeprefix("error: "))[:200].rstrip(".")


def _printable(path: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in path)[:256]
