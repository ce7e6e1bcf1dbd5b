"""From a job to what guides its sampling: reasoning first, free and counted, and then the constraint.

Owns the border between the two, which no grammar knows: a grammar describes the answer alone, so reasoning costs no
mask, and a budget can close it. Engines see `TokenMask`s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from backends.constraints.grammars import Compiler
from backends.constraints.words import Words
from backends.formats.pieces import held_back
from backends.formats.thinking import Thinking
from backends.messages import ToolCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from backends.constraints.grammars import CompiledGrammar, Mask
    from backends.constraints.vocabulary import ConstraintVocabulary
    from backends.formats.base import Format
    from backends.messages import Constraint, Generate

_MAX_GAP_TOKENS = 4
"""White space that a model may put between its reasoning and a constrained answer."""


class _Phase(enum.Enum):
    """`START -> [REASONING -> GAP | START ->] BODY`; a text that may be anything may then reason again."""

    START = enum.auto()
    REASONING = enum.auto()
    GAP = enum.auto()
    BODY = enum.auto()


class Guide:
    """See `backends.constraints.masks.TokenMask`; one text of one job."""

    def __init__(self, plan: GuidePlan) -> None:
        self._plan = plan
        self._mask: Mask | None = None if plan.grammar is None else plan.grammar.start()
        self._phase = {
            Thinking.OPEN: _Phase.REASONING,
            Thinking.MAYBE: _Phase.START,
            Thinking.NEVER: _Phase.BODY,
        }[plan.thinking]
        self._text = b""
        """At the start all of it, while reasoning its end."""
        self._answers = True
        """At the start: the text may also be the beginning of the answer."""
        self._n_gap = 0
        self._n_reasoned = 0
        """Tokens of the blocks that are closed."""
        self._likely: Mask | None = None
        """Behind a mark of the answer in an open block: the grammar, as far as what follows fits it."""
        self._n_likely = 0
        """Tokens from that mark on."""
        self._closing: list[int] | None = None
        """What is left of the forced end of a block whose budget is spent."""
        self.reasoning_tokens = 0

    def allowed(self) -> NDArray[np.bool_] | None:
        """See `TokenMask`."""
        if self._phase is _Phase.BODY:
            return None if self._mask is None else self._mask.allowed()
        if self._phase is _Phase.REASONING:
            return self._while_reasoning()
        if self._mask is None:
            return None
        words = self._plan.words()
        if self._phase is _Phase.GAP:
            return self._mask.allowed() | words.line_ends if self._n_gap < _MAX_GAP_TOKENS else self._mask.allowed()
        rest = self._plan.opening[len(self._text.lstrip()) :]
        return self._mask.allowed() | words.continuing(rest) if self._answers else words.continuing(rest)

    def _while_reasoning(self) -> NDArray[np.bool_] | None:
        plan = self._plan
        if self._closing is None and plan.budget is not None and self.reasoning_tokens >= plan.budget:
            self._close()
        if self._closing:
            return plan.words().only(self._closing[0])
        if self._mask is None:
            return None
        rest = plan.closing[held_back(self._text.decode("latin-1"), plan.closing.decode("latin-1")) :]
        overshooting = plan.words().overshooting(rest)
        return ~overshooting if overshooting.any() else None

    def _close(self) -> list[int]:
        """From now on the block's end is written; its tokens."""
        plan, self._likely = self._plan, None
        line_end = plan.words().spelling(b"\n") if plan.closing.startswith(b"</") else []
        self._closing = [*line_end, *plan.words().spelling(plan.closing)]
        return self._closing

    def n_fitting(self, tokens: list[int]) -> int:
        """See `TokenMask`: known in the answer alone."""
        return len(tokens) if self._phase is not _Phase.BODY or self._mask is None else self._mask.n_fitting(tokens)

    def forced(self) -> list[int]:
        """See `TokenMask`: a block's end that is being written, and what the grammar leaves no choice about."""
        if self._closing and self._phase is _Phase.REASONING:
            return list(self._closing)
        return [] if self._phase is not _Phase.BODY or self._mask is None else self._mask.forced()

    def instead(self, token: int) -> int:
        """See `TokenMask`."""
        if self._phase is not _Phase.REASONING or self._closing:
            return token
        if token in self._plan.ends:
            return token if self._mask is None or self._plan.may_end else self._close()[0]
        return token if self._likely is None else self._as_a_call(self._likely, token)

    def _as_a_call(self, likely: Mask, token: int) -> int:
        """The token, or the first one of its beginning that begins a call, where what stands behind that is none."""
        words, piece = self._plan.words(), self._plan.piece(token)
        if likely.accepts(token):
            return token
        for n in range(1, len(piece)):
            spelled, probe = words.spelling(piece[:n]), likely.copy()
            if all(probe.try_accept(one) for one in spelled) and probe.begun:
                return spelled[0]
        return token

    def accept(self, token: int) -> None:
        """See `TokenMask`."""
        match self._phase:
            case _Phase.BODY:
                if self._mask is not None:
                    self._mask.accept(token)
            case _Phase.REASONING:
                self._reason(token)
            case _Phase.GAP:
                self._bridge(token)
            case _Phase.START:
                self._begin(token)

    def _begin(self, token: int) -> None:
        self._text += self._plan.piece(token)
        self.reasoning_tokens += 1
        self._answers = self._answers and (self._mask is None or self._mask.try_accept(token))
        self._look_for_a_block(ended=token in self._plan.ends)

    def _look_for_a_block(self, *, ended: bool = False) -> None:
        text, opening = self._text.lstrip(), self._plan.opening
        if text.startswith(opening):
            self._phase, self._closing = _Phase.REASONING, None
            self._text = text[len(opening) :]
            self._mask = None if self._plan.grammar is None else self._plan.grammar.start()
            self._look_for_the_end()
        elif ended or not opening.startswith(text):
            self._phase = _Phase.BODY
            self.reasoning_tokens = self._n_reasoned

    def _reason(self, token: int) -> None:
        self.reasoning_tokens += 1
        if self._closing:
            self._closing.pop(0)
        piece = self._plan.piece(token)
        self._text += piece
        if self._closing or not self._plan.answer_marks or not self._begins_answer(token, piece):
            self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        plan = self._plan
        closed = self._text.find(plan.closing)
        if closed < 0:
            self._text = self._text[-plan.longest_mark :]
            return
        self._likely = None
        self._n_reasoned = self.reasoning_tokens
        self._text = self._text[closed + len(plan.closing) :]
        if plan.budget is not None and self.reasoning_tokens >= plan.budget:
            self._phase = _Phase.BODY if self._mask is None else _Phase.GAP
        elif self._mask is None or plan.may_end:
            self._phase, self._answers = _Phase.START, True
            self._look_for_a_block()
        else:
            self._phase = _Phase.GAP

    def _begins_answer(self, token: int, piece: bytes) -> bool:
        """The answer has begun in the open block: a mark of its own, and enough behind it to be sure."""
        plan = self._plan
        said = piece
        if self._likely is not None:
            if not self._likely.try_accept(token):
                self._likely = None
            self._n_likely += 1
        if plan.grammar is not None:
            for mark in plan.answer_marks:
                end = self._text.rfind(mark) + len(mark)
                rest = self._text[end:]
                if end >= len(mark) and len(rest) < len(piece) and plan.closing not in self._text[:end]:
                    said = rest
                    self._look_at(mark, said)
                    break
        if self._likely is None or not self._is_sure(self._likely, said):
            return False
        self._mask, self._phase = self._likely, _Phase.BODY
        self.reasoning_tokens = max(self._n_reasoned, self.reasoning_tokens - self._n_likely)
        return True

    def _is_sure(self, likely: Mask, said: bytes) -> bool:
        """What was said last leaves no doubt that this is the answer."""
        plan = self._plan
        if not plan.calls:
            return bool(said.strip())
        return likely.begun or any(opening in self._text for opening in plan.answer_openings)

    def _look_at(self, mark: bytes, rest: bytes) -> None:
        """A mark of the answer stands in the open block: its grammar reads on beside the reasoning."""
        assert self._plan.grammar is not None
        words, mask = self._plan.words(), self._plan.grammar.start()
        tokens = words.spelling(mark)
        if all(mask.try_accept(token) for token in [*tokens, *(words.spelling(rest) if rest else [])]):
            self._likely, self._n_likely = mask, len(tokens)

    def _bridge(self, token: int) -> None:
        assert self._mask is not None
        if self._mask.try_accept(token):
            self._phase = _Phase.BODY
        else:
            self._n_gap += 1

    @property
    def ended(self) -> bool:
        """See `TokenMask`."""
        return self._phase is _Phase.BODY and self._mask is not None and self._mask.ended

    @property
    def called(self) -> bool:
        """See `TokenMask`."""
        return self._mask is not None and self._mask.called


@dataclass(frozen=True)
class GuidePlan:
    """What all choices of one job share."""

    grammar: CompiledGrammar | None
    thinking: Thinking
    marks: tuple[str, str]
    budget: int | None
    words: Callable[[], Words]
    piece: Callable[[int], bytes]
    ends: frozenset[int]
    may_end: bool = False
    """The answer may be any text, also none."""
    answer_marks: tuple[bytes, ...] = ()
    """What begins the answer also where the reasoning before it was not closed."""
    answer_openings: tuple[bytes, ...] = ()
    """The same, whole: nothing more has to follow."""
    calls: bool = False
    """The answer may hold calls, and a mark alone is none."""
    opening: bytes = field(init=False)
    closing: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "opening", self.marks[0].encode())
        object.__setattr__(self, "closing", self.marks[1].encode())

    @property
    def follows_tokens(self) -> bool:
        """A guide that has taken in the same tokens goes on as another would have: none is about to close a block."""
        closes = self.thinking is not Thinking.NEVER and self.grammar is not None and not self.may_end
        return self.budget is None and not closes

    @property
    def longest_mark(self) -> int:
        """Bytes of a text's end in which something may have begun."""
        return max(map(len, (self.closing, *self.answer_marks, *self.answer_openings)))

    def start(self) -> Guide:
        """The guide of one choice."""
        return Guide(self)


class Guides:
    """One model's: its grammars, its marks, and the pieces that a text of it shows. `plan` is for one thread."""

    def __init__(
        self,
        *,
        vocabulary: Callable[[], ConstraintVocabulary],
        format_: Format,
        piece: Callable[[int], bytes],
        ends: Sequence[int],
        marks: tuple[str, str] | None,
    ) -> None:
        self._make_vocabulary = vocabulary
        self._made: ConstraintVocabulary | None = None
        self._compiler = Compiler(self._vocabulary, format_)
        self._format = format_
        self._piece = piece
        self._ends = frozenset(ends)
        self._marks = marks
        self._words: Words | None = None

    def plan(self, job: Generate, thinking: Thinking) -> GuidePlan | None:
        """What guides this job; None where nothing has to. Raises JobError."""
        if job.constraint is None and thinking is Thinking.NEVER:
            return None
        plan = GuidePlan(
            grammar=None
            if job.constraint is None
            else self._compiler.compile(job.constraint, without_space=job.json_whitespace == "compact"),
            thinking=thinking,
            marks=self._marks or ("", ""),
            budget=job.reasoning_budget,
            words=self._ready_words,
            piece=self._piece,
            ends=self._ends,
            may_end=_is_free(job.constraint),
            answer_marks=self._answer_marks(job.constraint),
            answer_openings=tuple(opening.encode() for opening in self._format.answer_openings),
            calls=isinstance(job.constraint, ToolCalls),
        )
        if thinking is not Thinking.NEVER and (plan.grammar is not None or plan.budget is not None):
            self._ready_words().prepare(plan.opening, plan.closing)
        return plan

    def _answer_marks(self, constraint: Constraint | None) -> tuple[bytes, ...]:
        marks = self._format.ends_reasoning(calls=isinstance(constraint, ToolCalls))
        return tuple(mark.encode() for mark in marks)

    def warm(self) -> None:
        """Make what the first constraint needs, before anybody streams; nothing without tokens that end a text."""
        if self._ends:
            self._compiler.warm()
            if self._marks is not None:
                self._ready_words().prepare(*(mark.encode() for mark in self._marks))

    def _ready_words(self) -> Words:
        if self._words is None:
            self._words = Words(self._vocabulary())
        return self._words

    def _vocabulary(self) -> ConstraintVocabulary:
        if self._made is None:
            self._made = self._make_vocabulary()
        return self._made


def _is_free(constraint: Constraint | None) -> bool:
    """Any text satisfies it, also none."""
    if isinstance(constraint, ToolCalls):
        return not constraint.required and constraint.content is None
    return constraint is None


def shown_marks(format_: Format, marks: tuple[str, str] | None) -> frozenset[str]:
    """Literals that belong to an answer although a vocabulary may hold them as control tokens."""
    return frozenset((*format_.marks, *(marks or ())))
