"""Which running sequences have drafted tokens in the next step, and what came of them.

Owns each sequence's drafter and what is learned of drafts. A drafted token is computed in the step of the token before
it, and stays where the sequence's own rules choose just that token from the row before: so a text is what it would have
been, whatever was drafted.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Final

from backends.generation.batching import Share
from backends.generation.draft_policy import Acceptance, RowCosts, learn_both, likely_rows, rows_of
from backends.generation.lookup import TextLookup
from backends.generation.sequence import Phase
from backends.plan import SCORED_ROWS

if TYPE_CHECKING:
    from backends.generation.decoder import DecoderContext
    from backends.generation.pace import Pace
    from backends.generation.sequence import GenerationRequest, Sequence
    from backends.generation.step_rows import StepRows
    from backends.messages import SpeculationMode

MOST_ROWS: Final = SCORED_ROWS - 1
"""Drafted tokens of one step: their logits lie where those of scored prompts do, which never share a step with them.

With the sequence's own it is sixteen rows, which kernels compute at once.
"""
_PAUSE_STEPS: Final = 64
_FORCED_AT_FIRST: Final = 0.95
"""The share of tokens without a choice that come: a text may be spelled otherwise than usual."""
_NEWEST_FORCED: Final = 0.05


def told(mode: SpeculationMode, context: DecoderContext) -> str:
    """How tokens are drafted, for people; with a reason where the model is why nothing is."""
    if mode != "off" and not context.cuts_back:
        return "off: the model carries a running state, which cannot be taken back"
    return mode


class SequenceDrafts:
    """What is drafted for one sequence, and how it has gone."""

    def __init__(self, sequence: Sequence, of_model: Acceptance, prediction: tuple[int, ...]) -> None:
        self.lookup = TextLookup(sequence.request.prompt.tolist(), prediction)
        self._acceptance = Acceptance(list(of_model.shares))
        self._of_model = of_model
        self._forced: list[int] = []
        """What a grammar said has to follow, from the next token on."""
        self._forced_share = _FORCED_AT_FIRST
        self._n_followed = 0

    def follow(self, generated: list[int]) -> None:
        """Take in what the sequence has said since the last time."""
        lookup = self.lookup
        for token in generated[self._n_followed :]:
            matched = lookup.matched
            hit = lookup.follow(token)
            if hit is not None:
                learn_both(self._acceptance, self._of_model, matched, hit=hit)
            if self._forced:
                hit = self._forced.pop(0) == token
                self._forced_share += _NEWEST_FORCED * (hit - self._forced_share)
                self._forced = self._forced if hit else []
        self._n_followed = len(generated)

    def chances(self, sequence: Sequence, most: int) -> list[float]:
        """How likely each token of a draft of at most that length comes true, with all before it."""
        self.follow(sequence.generated)
        if sequence.guide is not None:
            self._forced = sequence.guide.forced()[:most]
            if self._forced:
                return [self._forced_share**n for n in range(1, len(self._forced) + 1)]
        if self.lookup.at < 0:
            return []
        draft = self.lookup.draft(most)
        n_fitting = len(draft) if sequence.guide is None or not draft else sequence.guide.n_fitting(draft)
        return self._acceptance.chances(self.lookup.matched, n_fitting)

    def draft(self, n_tokens: int) -> list[int]:
        """The first tokens of what `chances` was told of."""
        return self._forced[:n_tokens] if self._forced else self.lookup.draft(n_tokens)

    @property
    def drafter(self) -> str:
        """Whose draft that is, of `DRAFTERS`."""
        return "grammar" if self._forced else self.lookup.drafter


def _told_of_fault(sequence: Sequence) -> None:
    """Nothing more is drafted for a sequence; the worker's log says why."""
    sequence.drafts = None
    sys.stderr.write(f"a drafter failed, and the answer goes on without: {traceback.format_exc()}")
    sys.stderr.flush()


class Speculation:
    """Of one engine. `mode`: `auto` drafts where that has been faster, `ngram` wherever it is likely to come true."""

    def __init__(self, pace: Pace, *, mode: SpeculationMode) -> None:
        self._mode = mode
        self._costs = RowCosts(pace)
        self._of_model = Acceptance()
        self._n_paused = 0
        self.news: dict[str, tuple[int, int]] = {}
        """By drafter, the tokens drafted and those that came true, since `told` was last asked."""

    def drafts_of(self, sequence: Sequence) -> SequenceDrafts | None:
        """A new sequence's; None where nothing is drafted for it."""
        request = sequence.request
        if not self._takes(request):
            return None
        return SequenceDrafts(sequence, self._of_model, request.prediction)

    def _takes(self, request: GenerationRequest) -> bool:
        """A seed stands for one text: under `auto`, which goes by the clock, its batches are always the same."""
        if self._mode == "off" or request.job.speculation == "off":
            return False
        return self._mode != "auto" or request.job.sampling.seed is None

    def shares(self, sequences: list[Sequence], *, room: int | None) -> list[Share] | None:
        """The shares of a step in which all decode, some with drafts, in order of slots; None where none drafts.

        `room`: free cells of a shared pool.
        """
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
        chances = [self._chances(sequence) for sequence in sequences]
        if not any(chances):
            return None
        rows = likely_rows(chances, most=most) if self._mode == "ngram" else rows_of(chances, self._costs, most=most)
        if not any(rows):
            if any(own and own[0] > 0.8 for own in chances):
                self._costs.refused(n)
            return None
        for sequence, n_rows in zip(sequences, rows, strict=True):
            sequence.draft = sequence.drafts.draft(n_rows) if n_rows and sequence.drafts is not None else []
        shares = [Share(index, 1 + len(sequence.draft)) for index, sequence in enumerate(sequences)]
        return sorted(shares, key=lambda share: sequences[share.sequence].slot)

    @staticmethod
    def _chances(sequence: Sequence) -> list[float]:
        """Empty from then on where the drafter fails: its fault is no reason to end an answer."""
        if sequence.drafts is None:
            return []
        n_left = max(0, sequence.request.limit - len(sequence.generated) - 1)
        try:
            return sequence.drafts.chances(sequence, min(MOST_ROWS, n_left))
        except Exception:
            _told_of_fault(sequence)
            return []

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

    def count(self, sequence: Sequence, n_drafted: int, n_accepted: int) -> None:
        """So many of a sequence's drafted tokens came true."""
        if n_drafted and sequence.drafts is not None:
            drafter = sequence.drafts.drafter
            before = self.news.get(drafter, (0, 0))
            self.news[drafter] = (before[0] + n_drafted, before[1] + n_accepted)

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
