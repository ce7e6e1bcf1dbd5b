"""What is drafted for one sequence, by which drafter, and how it has gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from backends.generation.draft_policy import Acceptance, ModelRecord, ModelTrust, learn_both
from backends.generation.lookup import TextLookup

if TYPE_CHECKING:
    from backends.generation.sequence import Sequence

_FORCED_AT_FIRST: Final = 0.95
"""The share of tokens without a choice that come: a text may be spelled otherwise than usual."""
_NEWEST_FORCED: Final = 0.05


class Offer(NamedTuple):
    """What could be drafted for a sequence in the next step."""

    chances: list[float]
    """How likely each token of it comes true, with all before it; empty: nothing is to be drafted."""
    by_model: bool = False
    """The draft model has yet to think of them."""


NO_OFFER: Final = Offer([])


class SequenceDrafts:
    """See the module's text."""

    def __init__(
        self,
        sequence: Sequence,
        of_model: Acceptance,
        record: ModelRecord,
        *,
        prediction: tuple[int, ...],
        cached: list[list[int]],
    ) -> None:
        self.lookup = TextLookup(sequence.request.prompt.tolist(), prediction, cached)
        self.trust = ModelTrust(record)
        self.drafter = ""
        """The drafter of what is verified in this step, of `DRAFTERS`."""
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

    def offer(self, sequence: Sequence, most: int) -> Offer:
        """A draft of at most that length for which nothing has to be computed."""
        self.follow(sequence.generated)
        if sequence.guide is not None:
            self._forced = sequence.guide.forced()[:most]
            if self._forced:
                return Offer([self._forced_share**n for n in range(1, len(self._forced) + 1)])
        if self.lookup.at < 0:
            return NO_OFFER
        draft = self.lookup.draft(most)
        n_fitting = len(draft) if sequence.guide is None or not draft else sequence.guide.n_fitting(draft)
        return Offer(self._acceptance.chances(self.lookup.matched, n_fitting))

    def draft(self, n_tokens: int) -> list[int]:
        """The first tokens of what was offered."""
        self.drafter = "grammar" if self._forced else self.lookup.drafter
        return self._forced[:n_tokens] if self._forced else self.lookup.draft(n_tokens)

    def take(self, drafted: list[int], sequence: Sequence, drafter: str) -> list[int]:
        """What a model has thought of, as far as a grammar lets it stand."""
        self.drafter = drafter
        if sequence.guide is None or not drafted:
            return drafted
        n_fitting = sequence.guide.n_fitting(drafted)
        if n_fitting == 0:
            self.trust.learn(1, 0)
        return drafted[:n_fitting]

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """So many of the drafted tokens came true."""
        if self.drafter in ("model", "mtp"):
            self.trust.learn(n_drafted, n_accepted)
