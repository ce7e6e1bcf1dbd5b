"""A small model that drafts for a large one: its cells, what they hold of each text, and what it says comes next.

It drafts greedily, which is what most often comes true: the large model's own rules choose. What it takes is told in
microseconds, so that `draft_policy` can weigh it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from backends.engine import LoadError
from backends.generation.row_layout import TEXT_ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Items

    from numpy.typing import NDArray

    from backends.generation.decoder import DecoderContext, DecoderModel
    from backends.generation.sequence import Sequence

_NO_ROOM: Final = 1
_NEWEST_SHARE: Final = 0.1
_MOST_SURPRISE: Final = 2.0
"""A pause of the whole machine is no property of the model."""
_ROW_AT_FIRST: Final = 0.25
"""Of a step, what a row among many is taken for before any was computed."""
_FEW_ROWS: Final = 16
"""Of a text that are fed in the step that drafts; more go before it, in steps of their own."""
_MOST_ROWS: Final = 512
_SHARED_TOKENS: Final = 64
"""So many more of a text's first tokens another slot must hold, to be worth a copy."""


def common_tokens(target: DecoderModel, draft: DecoderModel) -> int:
    """How many tokens both models have, which are the same ones in both; what one has more is never drafted.

    Raises LoadError where the two speak in different tokens.
    """
    n_common = min(target.n_vocab, draft.n_vocab)
    for token in range(n_common):
        one, other = target.literal(token), draft.literal(token)
        if one != other:
            raise LoadError(
                f"it has another vocabulary: token {token} is {_shown(other)} there and {_shown(one)} in the model. "
                "hint: a draft model is a smaller one of the same family"
            )
    return n_common


def likeliest(logits: NDArray[np.float32]) -> tuple[int, float]:
    """The token with the best of `(n_vocab,)` logits, and by how much it leads the next one's; overwrites the best.

    Raises RuntimeError where they are no numbers, as those of damaged weights.
    """
    token = int(logits.argmax())
    best, logits[token] = float(logits[token]), -np.inf
    margin = best - float(logits.max())
    if math.isnan(margin):
        raise RuntimeError("its logits are no numbers. hint: fetch its file again")
    return token, margin


def _shown(literal: bytes) -> str:
    return repr(literal.decode("utf-8", "replace")[:40])


@dataclass(slots=True)
class _Cells:
    """What one slot's cells hold."""

    owner: Sequence | None = None
    text: list[int] = field(default_factory=list)
    """The owner's, as far as it was followed."""
    n_generated: int = 0
    """Of `text`, the tokens behind the prompt."""
    fed: list[int] = field(default_factory=list)
    """Tokens with a cell; they may go on otherwise than the text."""
    n_agreed: int = 0
    """Of them, those that are the text's."""


class TokenDrafter(Protocol):
    """A network that drafts for the sequences of a model."""

    drafter: str
    """Of `DRAFTERS`."""
    step_us: float
    """A step of a row for each sequence that drafts."""

    def close(self) -> None:
        """Free it."""
        ...

    @property
    def pooled(self) -> bool:
        """All slots share the cells of one pool, so that none may keep what is of no use any more."""
        ...

    def keep_only(self, slots: Items[int]) -> None:
        """Free the cells of all others."""
        ...

    def takes(self, sequence: Sequence) -> bool:
        """Whether it can follow a text."""
        ...

    def most(self, sequence: Sequence) -> int:
        """Tokens that it has room to draft."""
        ...

    def is_behind(self, sequence: Sequence) -> bool:
        """It has so many rows to compute before it can draft that they are steps of their own."""
        ...

    def catch_up_us(self, sequence: Sequence) -> float:
        """What these rows take."""
        ...

    def catch_up(self, sequence: Sequence, *, within_us: float) -> float:
        """Compute some of them, about as many as the time allows; the microseconds that took."""
        ...

    def draft(
        self, wanted: Iterable[tuple[Sequence, int]], goes_on: Callable[[Sequence, int, float], bool]
    ) -> tuple[dict[int, list[int]], float]:
        """At most so many tokens for each, by slot, and the microseconds that took.

        `goes_on` is asked with each token and by how much its logit leads the next best one's: False ends the draft
        before it.
        """
        ...


class DraftModel:
    """The draft's context and its cells, a slot for each of the target's."""

    drafter = "model"

    def __init__(
        self,
        context: DecoderContext,
        *,
        parallel: int,
        n_tokens: int,
        n_vocab: int,
        step_us: float,
        close: Callable[[], None],
    ) -> None:
        """`n_tokens`: what one sequence's cells hold. `n_vocab`: tokens that both models have. `step_us`: what a step
        of one row took. `close` frees the model and its context.
        """
        self._close = close
        self.step_us = step_us
        """A step of a row for each sequence that drafts."""
        self._row_us = _ROW_AT_FIRST * step_us
        self._context = context
        self._n_tokens, self._n_vocab = n_tokens, n_vocab
        self._slots = [_Cells() for _ in range(parallel)]
        self._shares = True
        """One slot's cells can be another's beginning; False once that has failed."""

    def close(self) -> None:
        """Free the draft model and its context."""
        self._close()

    @property
    def pooled(self) -> bool:
        """See `TokenDrafter`."""
        return self._context.layout == "unified"

    def keep_only(self, slots: Items[int]) -> None:
        """Free the cells of all others."""
        for slot, cells in enumerate(self._slots):
            if cells.fed and slot not in slots:
                self._context.clear(slot)
                self._slots[slot] = _Cells()

    def takes(self, sequence: Sequence) -> bool:
        """Whether it can follow a text: one of tokens that it has, and shorter than its context."""
        cells = self._followed(sequence)
        return (
            sequence.request.layout is TEXT_ALONE
            and len(cells.text) < self._n_tokens
            and max(cells.text[cells.n_agreed :], default=0) < self._n_vocab
        )

    def most(self, sequence: Sequence) -> int:
        """Tokens that its context has room to draft."""
        return self._n_tokens - len(self._followed(sequence).text)

    def n_behind(self, sequence: Sequence) -> int:
        """Rows to compute before it can draft, the one of the text's last token not counted."""
        cells = self._followed(sequence)
        return len(cells.text) - 1 - min(cells.n_agreed, len(cells.text) - 1)

    def is_behind(self, sequence: Sequence) -> bool:
        """So many rows that they are steps of their own."""
        return self.n_behind(sequence) > _FEW_ROWS

    def catch_up_us(self, sequence: Sequence) -> float:
        """What these rows take."""
        return self.n_behind(sequence) * self._row_us

    def catch_up(self, sequence: Sequence, *, within_us: float) -> float:
        """Compute some of them, about as many as the time allows; the microseconds that took."""
        began = time.perf_counter_ns()
        cells = self._cut(sequence)
        self._borrow(sequence.slot, cells)
        if not (n_behind := self.n_behind(sequence)):
            return (time.perf_counter_ns() - began) / 1000
        n_rows, at = int(min(_MOST_ROWS, max(_FEW_ROWS, within_us / self._row_us), n_behind)), len(cells.fed)
        self._compute([(sequence.slot, cells.text[at : at + n_rows])], logits=False)
        took_us = (time.perf_counter_ns() - began) / 1000
        told = min(took_us / n_rows, _MOST_SURPRISE * self._row_us)
        self._row_us += 3 * _NEWEST_SHARE * (told - self._row_us)
        cells.n_agreed = len(cells.fed)
        return took_us

    def draft(
        self, wanted: Iterable[tuple[Sequence, int]], goes_on: Callable[[Sequence, int, float], bool]
    ) -> tuple[dict[int, list[int]], float]:
        """See `TokenDrafter`."""
        began, found = time.perf_counter_ns(), dict[int, list[int]]()
        rows: list[tuple[int, list[int]]] = []
        left: dict[int, tuple[Sequence, int]] = {}
        for sequence, most in sorted(wanted, key=lambda one: one[0].slot):
            cells = self._cut(sequence)
            rows.append((sequence.slot, cells.text[len(cells.fed) :]))
            left[sequence.slot] = sequence, most
            found[sequence.slot] = []
        n_steps = 0
        while rows:
            logits = self._compute(rows, logits=True)
            if logits is None:
                break
            n_steps += 1
            for slot, _ in rows:
                cells = self._slots[slot]
                cells.n_agreed = min(len(cells.fed), len(cells.text))
            slots = [slot for slot, _ in rows]
            going = (
                slot for slot, row in zip(slots, logits, strict=True) if self._adds(slot, row, left, found, goes_on)
            )
            rows = [(slot, found[slot][-1:]) for slot in going]
        took_us = (time.perf_counter_ns() - began) / 1000
        if n_steps:
            told = min(took_us / n_steps, _MOST_SURPRISE * self.step_us)
            self.step_us += _NEWEST_SHARE * (told - self.step_us)
        return found, took_us

    def _adds(
        self,
        slot: int,
        logits: NDArray[np.float32],
        left: dict[int, tuple[Sequence, int]],
        found: dict[int, list[int]],
        goes_on: Callable[[Sequence, int, float], bool],
    ) -> bool:
        """Put the likeliest token behind a slot's draft; whether another one is to follow."""
        sequence, most = left[slot]
        token, margin = likeliest(logits)
        if token >= self._n_vocab or not goes_on(sequence, token, margin):
            return False
        found[slot].append(token)
        return len(found[slot]) < most

    def _followed(self, sequence: Sequence) -> _Cells:
        """A sequence's slot, which knows its text as it is now and how much of it is there."""
        cells = self._slots[sequence.slot]
        if cells.owner is not sequence:
            cells.owner, cells.n_generated = sequence, len(sequence.generated)
            cells.text = [*sequence.request.prompt.tolist(), *sequence.generated]
            cells.n_agreed = _common(cells.fed, cells.text)
        elif cells.n_generated < len(sequence.generated):
            cells.text += sequence.generated[cells.n_generated :]
            cells.n_generated = len(sequence.generated)
            most = min(len(cells.fed), len(cells.text))
            while cells.n_agreed < most and cells.fed[cells.n_agreed] == cells.text[cells.n_agreed]:
                cells.n_agreed += 1
        return cells

    def _borrow(self, slot: int, cells: _Cells) -> None:
        """Begin with what another slot's cells hold of the text, where that is much more."""
        if not self._shares or len(cells.text) - cells.n_agreed <= _SHARED_TOKENS:
            return
        others = ((_common(other.fed, cells.text), at) for at, other in enumerate(self._slots) if at != slot)
        n_common, source = max(others, default=(0, -1))
        if n_common <= cells.n_agreed + _SHARED_TOKENS:
            return
        self._context.clear(slot)
        self._shares = self._context.share(source, slot, n_common)
        if not self._shares:
            self._context.clear(slot)
        cells.fed = cells.text[:n_common] if self._shares else []
        cells.n_agreed = len(cells.fed)

    def _cut(self, sequence: Sequence) -> _Cells:
        """The same with cells that hold the text alone, and not its last token, from which a draft begins."""
        cells = self._followed(sequence)
        keep = min(cells.n_agreed, len(cells.text) - 1)
        if keep < len(cells.fed):
            if keep and self._context.trim(sequence.slot, keep):
                del cells.fed[keep:]
            else:
                self._context.clear(sequence.slot)
                cells.fed = []
        cells.n_agreed = len(cells.fed)
        return cells

    def _compute(self, rows: Items[tuple[int, list[int]]], *, logits: bool) -> NDArray[np.float32] | None:
        """Put tokens into the cells of some slots; the logits behind each one's last, where they are wanted.

        Without room for them all cells are freed, and there are none. Raises RuntimeError.
        """
        context, at = self._context, 0
        for slot, tokens in rows:
            end, past = at + len(tokens), len(self._slots[slot].fed)
            context.tokens[at:end] = tokens
            context.positions[at:end] = range(past, past + len(tokens))
            context.sequences[at:end] = slot
            context.outputs[at:end] = 0
            context.outputs[end - 1] = logits
            at = end
        status = context.decode(at)
        if status == _NO_ROOM:
            self.keep_only(())
            return None
        if status != 0:
            raise RuntimeError(f"the draft model's pass over {at} rows failed with status {status}")
        for slot, tokens in rows:
            self._slots[slot].fed += tokens
        return context.logits(len(rows)) if logits else None


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that both begin with."""
    n = min(len(one), len(other))
    differ = np.nonzero(np.array(one[:n], dtype=np.int32) != np.array(other[:n], dtype=np.int32))[0]
    return int(differ[0]) if differ.size else n
