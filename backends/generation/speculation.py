"""Which running sequences have drafted tokens in the next step, and what came of them.

Owns each sequence's drafter and what is learned of drafts. A drafted token is computed in the step of the token before
it, and stays where the sequence's own rules choose just that token from the row before: so a text is what it would have
been, whatever was drafted.
"""

from __future__ import annotations

import math
import sys
import traceback
from typing import TYPE_CHECKING, Final

from backends.generation.batching import Share
from backends.generation.draft_policy import Acceptance, ModelRecord, RowCosts, likely_rows, rows_of
from backends.generation.sequence import Phase
from backends.generation.sequence_drafts import NO_OFFER, Offer, SequenceDrafts
from backends.plan import SCORED_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

    import numpy as np
    from numpy.typing import NDArray

    from backends.generation.decoder import DecoderContext
    from backends.generation.draft_model import TokenDrafter
    from backends.generation.pace import Pace
    from backends.generation.sequence import GenerationRequest, Sequence
    from backends.generation.step_rows import StepRows
    from backends.messages import SpeculationMode

MOST_ROWS: Final = SCORED_ROWS - 1
"""Drafted tokens of one step: their logits lie where those of scored prompts do, which never share a step with them.

With the sequence's own it is sixteen rows, which kernels compute at once.
"""
_PAUSE_STEPS: Final = 64
_MODEL_CREDIT: Final = (64.0, 256.0)
"""Steps that a draft model may lose at first, and where it has won more: it reads a prompt before it drafts."""
_WON_A_TOKEN: Final = 0.25
"""Of a step, what a draft model is thought to win with each token, where a prompt has to be read for it."""


def told(mode: SpeculationMode, context: DecoderContext, *, draft: str = "") -> str:
    """How tokens are drafted, for people; with a reason where the model is why nothing is."""
    if mode != "off" and not context.cuts_back:
        return "off: the model carries a running state, which cannot be taken back"
    return draft if draft and mode == "auto" else mode


def _told_of_fault(sequence: Sequence) -> None:
    """Nothing more is drafted for a sequence; the worker's log says why."""
    sequence.drafts = None
    sys.stderr.write(f"a drafter failed, and the answer goes on without: {traceback.format_exc()}")
    sys.stderr.flush()


class Speculation:
    """Of one engine. `mode`: `auto` drafts where that has been faster, `ngram` wherever it is likely to come true."""

    def __init__(self, pace: Pace, *, mode: SpeculationMode, model: TokenDrafter | None = None) -> None:
        self._mode = mode
        self._model = model
        first, most = _MODEL_CREDIT
        self._pace = pace
        self._costs = RowCosts(pace) if model is None else RowCosts(pace, first_credit=first, most_credit=most)
        self._of_model = Acceptance()
        self._record = ModelRecord()
        self._n_paused = 0
        self.drafting_us = 0.0
        """What the draft model has taken of this step, which is no part of the pass."""
        self.news: dict[str, tuple[int, int]] = {}
        """By drafter, the tokens drafted and those that came true, since `told` was last asked."""

    def spent_us(self) -> float:
        """What the draft model has taken since the last time, once: a step that drafts nothing has none of it."""
        spent, self.drafting_us = self.drafting_us, 0.0
        return spent

    def close(self) -> None:
        """Free the draft model."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def drafts_of(self, sequence: Sequence, cached: Callable[[Sequence], list[list[int]]]) -> SequenceDrafts | None:
        """A new sequence's; None where nothing is drafted for it. `cached` tells texts of the prefix cache."""
        request = sequence.request
        if not self._takes(request):
            return None
        texts = cached(sequence)
        return SequenceDrafts(sequence, self._of_model, self._record, prediction=request.prediction, cached=texts)

    def _takes(self, request: GenerationRequest) -> bool:
        """A seed stands for one text: under `auto`, which goes by the clock, its batches are always the same."""
        if self._mode == "off" or request.job.speculation == "off":
            return False
        return self._mode != "auto" or request.job.sampling.seed is None

    def shares(self, sequences: list[Sequence], *, room: int | None) -> list[Share] | None:
        """The shares of a step in which all decode, some with drafts, in order of slots; None where none drafts.

        `room`: free cells of a shared pool.
        """
        self.drafting_us = 0.0
        if self._n_paused:
            self._n_paused -= 1
            return None
        if all(sequence.drafts is None for sequence in sequences):
            return None
        n = len(sequences)
        most = MOST_ROWS if room is None else min(MOST_ROWS, room - n)
        if most <= 0 or any(sequence.phase is not Phase.DECODE for sequence in sequences):
            return None
        if self._mode == "auto" and not self._costs.solvent:
            return None
        offers = [self._offer(sequence, n) for sequence in sequences]
        rows = self._rows(offers, most=most) if any(offer.chances for offer in offers) else []
        if not any(rows):
            return None
        self._draft(sequences, offers, rows)
        if not any(sequence.draft for sequence in sequences):
            return None
        shares = [Share(index, 1 + len(sequence.draft)) for index, sequence in enumerate(sequences)]
        return sorted(shares, key=lambda share: sequences[share.sequence].slot)

    def _rows(self, offers: list[Offer], *, most: int) -> list[int]:
        """How many tokens are drafted for each sequence."""
        chances, n = [offer.chances for offer in offers], len(offers)
        if self._mode == "ngram":
            return likely_rows(chances, most=most)
        each = 0.0 if self._model is None else self._costs.steps(n, self._model.step_us)
        rows = rows_of(chances, self._costs, most=most, drafting=[each * offer.by_model for offer in offers])
        if not any(rows) and any(own and own[0] > 0.8 for own in chances):
            self._costs.refused(n)
        return rows

    def _offer(self, sequence: Sequence, n: int) -> Offer:
        """None from then on where the drafter fails: its fault is no reason to end an answer."""
        if sequence.drafts is None:
            return NO_OFFER
        n_left = max(0, sequence.request.limit - len(sequence.generated) - 1)
        most = min(MOST_ROWS, n_left)
        try:
            found = sequence.drafts.offer(sequence, most)
        except Exception:
            _told_of_fault(sequence)
            return NO_OFFER
        if self._model is None or most == 0:
            return found
        try:
            by_model = self._model_offer(self._model, sequence.drafts, sequence, most=most, n=n, n_left=n_left)
        except Exception:
            self._without_model()
            return found
        return by_model if by_model.chances[:1] > found.chances[:1] else found

    def _model_offer(
        self, model: TokenDrafter, drafts: SequenceDrafts, sequence: Sequence, *, most: int, n: int, n_left: int
    ) -> Offer:
        """What the draft model would do for a sequence, once it has read its text: a part of it with each step."""
        if not model.takes(sequence):
            return NO_OFFER
        chances = drafts.trust.chances(min(most, model.most(sequence)))
        if not chances or not model.is_behind(sequence):
            return Offer(chances, by_model=True)
        cost_us, plain_us = model.catch_up_us(sequence), self._pace.decode_us(n)
        pays = self._costs.affords(n, cost_us) and cost_us < n_left * _WON_A_TOKEN * plain_us
        if self.drafting_us == 0.0 and (pays or self._mode != "auto"):
            self.drafting_us = model.catch_up(sequence, within_us=plain_us if self._mode == "auto" else math.inf)
            self._costs.pay(n, self.drafting_us)
        return NO_OFFER

    def _draft(self, sequences: list[Sequence], offers: list[Offer], rows: list[int]) -> None:
        """Give each sequence its draft."""
        thinking: list[tuple[Sequence, int]] = []
        for sequence, offer, n_rows in zip(sequences, offers, rows, strict=True):
            sequence.draft = []
            if not n_rows or sequence.drafts is None:
                continue
            if offer.by_model:
                sequence.drafts.trust.begin()
                thinking.append((sequence, n_rows))
            else:
                sequence.draft = sequence.drafts.draft(n_rows)
        if thinking and self._model is not None:
            try:
                self._think(self._model, thinking, sequences)
            except Exception:
                self._without_model()

    def _think(self, model: TokenDrafter, thinking: list[tuple[Sequence, int]], sequences: list[Sequence]) -> None:
        if model.pooled:
            model.keep_only([sequence.slot for sequence in sequences])

        def goes_on(sequence: Sequence, token: int, margin: float) -> bool:
            return sequence.drafts is not None and sequence.drafts.trust.goes_on(margin)

        found, took_us = model.draft(thinking, goes_on)
        self.drafting_us += took_us
        self._costs.pay(len(sequences), took_us)
        for sequence, _ in thinking:
            if sequence.drafts is not None:
                sequence.draft = sequence.drafts.take(found[sequence.slot], sequence, model.drafter)

    def _without_model(self) -> None:
        """The draft model has failed: it drafts nothing more, and the worker's log says why."""
        sys.stderr.write(f"the draft model failed, and answers go on without: {traceback.format_exc()}")
        sys.stderr.flush()
        self.close()

    @staticmethod
    def foretold(sequence: Sequence) -> int:
        """How many tokens of a text that has ended came as its prediction had them."""
        if sequence.drafts is None:
            return 0
        try:
            sequence.drafts.follow(sequence.generated)
        except Exception:
            _told_of_fault(sequence)
            return 0
        return sequence.drafts.lookup.n_foretold

    def verify(
        self,
        rows: StepRows,
        sequences: Items[Sequence],
        logits: NDArray[np.float32],
        *,
        choose: Callable[[Sequence, int, NDArray[np.float32], int], bool],
        cut_back: Callable[[Sequence, int], None],
    ) -> int:
        """Choose from each row in turn while what is chosen was drafted, and cut off what was computed behind that.

        `choose` a token from a row of the batch, with its logits and the best of them: False where the sequence has
        ended. How many drafted tokens came true.
        """
        best = logits.argmax(axis=1).tolist()
        output = n_accepted = 0
        for sequence, count in [(sequences[index], count) for index, count in rows.shares]:
            draft, sequence.draft, n_kept = sequence.draft, [], 1
            for at in range(count):
                _, row = rows.outputs[output + at]
                goes_on = choose(sequence, row, logits[output + at], best[output + at])
                n_kept = at + 1
                if not goes_on or (at < len(draft) and sequence.token != draft[at]):
                    break
            output += count
            if n_kept < count:
                cut_back(sequence, count - n_kept)
            self._count(sequence, len(draft), n_kept - 1)
            n_accepted += n_kept - 1
        return n_accepted

    def _count(self, sequence: Sequence, n_drafted: int, n_accepted: int) -> None:
        """So many of a sequence's drafted tokens came true."""
        if n_drafted and sequence.drafts is not None:
            drafter = sequence.drafts.drafter
            before = self.news.get(drafter, (0, 0))
            self.news[drafter] = (before[0] + n_drafted, before[1] + n_accepted)
            sequence.drafts.learn(n_drafted, n_accepted)

    def told(self) -> dict[str, tuple[int, int]]:
        """The news, once."""
        told, self.news = self.news, {}
        return told

    def give_way(self, sequences: list[Sequence]) -> None:
        """There was no room for drafts: nothing is drafted for a while."""
        self._n_paused = _PAUSE_STEPS
        for sequence in sequences:
            sequence.draft = []

    def learn(self, rows: StepRows, n_accepted: int, duration_us: float) -> None:
        """Take in what a step with drafts took, and how many of them came true."""
        self._costs.learn(len(rows.shares), rows.n_drafted, n_accepted, duration_us)
