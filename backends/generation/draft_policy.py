"""How many drafted tokens a step verifies: what they are likely to win against what their rows cost. Pure.

A step of `n` decoding sequences gives `n` tokens. With `m` drafted rows more it gives those that come true as well, and
takes longer. Both are learned: whether drafts come true from those that were only thought of, so that a drafter costs
nothing before it is known to be right; what rows cost from steps that had them. Any library has its own steps there:
a card computes sixteen rows in the time of one, a processor four in the time of two, or each in a time of its own.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from backends.generation.lookup import LONGEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.generation.pace import Pace

_BUCKETS: Final = tuple((0, 1, 2, 3, 4, 5, 5, 6, 6, 6, 7, 7, 7, 7, 7, 7, 8)[n] for n in range(LONGEST + 1))
"""Matches of similar lengths are as good as each other."""
_AT_FIRST: Final = (0.3, 0.3, 0.3, 0.45, 0.55, 0.65, 0.75, 0.8, 0.85)
"""Of each, the share that goes on: before anything is known."""
_OWN_SHARE: Final = 0.15
"""Of a sequence's newest token in what it is taken for."""
_MODEL_SHARE: Final = 0.02
"""The same of all sequences of a model, from which a new one begins."""
_OWN_MODEL_SHARE: Final = 0.07
"""The same of a draft model's tokens: a text in which every second comes true goes on with drafts past six misses."""
_LEAST_CHANCE: Final = 0.25
"""A draft ends where it is less likely to come so far."""
_LEAST_MODEL_CHANCE: Final = 0.1
"""The same of a draft model's, which is right as often as it was: on a card, and up to four rows, rows cost little."""
_LIKELY: Final = 0.5
_LENGTHS: Final = (1, 3, 5, 7, 15)
"""Drafted rows of a step: with a sequence's own one two, four, eight or sixteen, as kernels compute them, or six. Few
lengths are soon known."""
_GAIN: Final = 1.04
"""So much faster a step has to be than one without drafts."""
_FAIR: Final = 1.0
"""No stream gets slower than it was because others draft."""
_NEWEST_COST: Final = 0.3
_FIRST_BELIEF: Final = 0.6
"""Of what a first step with so many rows took beyond a plain one: it may have been a pause, and is tried once more."""
_DEAREST_ROW: Final = 2.0
"""No row takes longer than so many steps: what does is a pause of the whole machine."""
_ALLOWANCE: Final = 0.015
"""Of the time of all steps, what drafts may lose in the long run."""
_FIRST_CREDIT: Final = 2.0
_MOST_CREDIT: Final = 8.0
"""Steps that drafts may lose at once: so many at first, so many where they have won more."""
_UNKNOWN_SLOPE: Final = 0.5
"""More rows than were ever tried are taken to cost half of what the last ones did, each."""
_MODEL_AT_FIRST: Final = 0.7
"""The share of a draft model's tokens that come true, before any was verified."""
_MARGINS: Final = (0.5, 1.0, 2.0, 4.0)
_AT_MARGINS: Final = (0.4, 0.55, 0.7, 0.85, 0.95)
"""The same by how much its best logit leads the next one."""
_IDLE_TOKENS: Final = 128
"""Tokens after which a draft model that did not pay is tried again; twice as many each time."""
_MOST_IDLE_TOKENS: Final = 4096
_PATIENCE: Final = 256
"""Steps with a good draft that was not worth its rows; then rows are believed to be cheaper, and tried again."""
_DOUBT: Final = 0.75


@dataclass(slots=True)
class Acceptance:
    """The share of matches that go on, by how long they have held."""

    shares: list[float] = field(default_factory=lambda: list(_AT_FIRST))

    def learn(self, matched: int, share: float, *, hit: bool) -> None:
        """A match of that length went on, or did not; `share` of the newest in what is known."""
        bucket = _BUCKETS[matched]
        self.shares[bucket] += share * (hit - self.shares[bucket])

    def chances(self, matched: int, n_tokens: int) -> list[float]:
        """How likely a draft comes true up to and with each of its tokens, as long as that is likely at all."""
        found: list[float] = []
        chance = 1.0
        for place in range(matched, matched + n_tokens):
            chance *= self.shares[_BUCKETS[min(place, LONGEST)]]
            if chance < _LEAST_CHANCE:
                break
            found.append(chance)
        return found


class ModelRecord:
    """How often a draft model's tokens come true: of all sequences, from which a new one begins."""

    def __init__(self) -> None:
        self.chance = _MODEL_AT_FIRST
        self.by_margin = list(_AT_MARGINS)


class ModelTrust:
    """The same of one sequence: how far a draft goes, and whether there is one."""

    def __init__(self, record: ModelRecord) -> None:
        self._record = record
        self._chance = record.chance
        self._chain = 1.0
        self._margins: list[int] = []
        """Buckets of the tokens of a draft."""
        self._n_idle, self._patience = 0, _IDLE_TOKENS
        """Looks in a row that found no draft of two tokens that is likely to come true, and how many are borne."""

    def chances(self, most: int) -> list[float]:
        """How likely a draft comes true up to and with each of its tokens; empty where that is too unlikely."""
        found = [chance for n in range(1, most + 1) if (chance := self._chance**n) >= _LEAST_MODEL_CHANCE]
        self._n_idle = 0 if self._chance >= _LIKELY and len(found) > 1 else self._n_idle + 1
        if self._n_idle >= self._patience:
            self._chance, self._n_idle = max(self._chance, _MODEL_AT_FIRST), 0
            self._patience = min(2 * self._patience, _MOST_IDLE_TOKENS)
        return found

    def begin(self) -> None:
        """A draft begins."""
        self._chain, self._margins = 1.0, []

    def goes_on(self, margin: float) -> bool:
        """Whether the next token, which leads by so much, is worth a row; the draft ends where it is not."""
        bucket = bisect.bisect(_MARGINS, margin)
        self._chain *= self._record.by_margin[bucket]
        if self._chain < _LEAST_MODEL_CHANCE:
            if not self._margins:
                self._learn(hit=False)
            return False
        self._margins.append(bucket)
        return True

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """So many of a draft's tokens came true."""
        for place, bucket in enumerate(self._margins[: min(n_drafted, n_accepted + 1)]):
            hit = place < n_accepted
            self._learn(hit=hit)
            self._record.by_margin[bucket] += _MODEL_SHARE * (hit - self._record.by_margin[bucket])
        if self._chance > _MODEL_AT_FIRST:
            self._patience = _IDLE_TOKENS

    def _learn(self, *, hit: bool) -> None:
        self._chance += _OWN_MODEL_SHARE * (hit - self._chance)
        self._record.chance += _MODEL_SHARE * (hit - self._record.chance)


def learn_both(own: Acceptance, of_model: Acceptance, matched: int, *, hit: bool) -> None:
    """Of a sequence, and with less weight of all."""
    own.learn(matched, _OWN_SHARE, hit=hit)
    of_model.learn(matched, _MODEL_SHARE, hit=hit)


class RowCosts:
    """What a step takes with rows for drafts, as a share of one without."""

    def __init__(self, pace: Pace, *, first_credit: float = _FIRST_CREDIT, most_credit: float = _MOST_CREDIT) -> None:
        """The credits are steps that drafts may lose at once: at first, and where they have won more."""
        self._pace = pace
        self._shares: dict[int, dict[int, float]] = {}
        """By decoding sequences and drafted rows."""
        self._credit, self._most_credit = first_credit, most_credit
        """Steps that drafts have won, less those that they have lost; below 0 nothing is drafted."""
        self._n_refused = 0

    @property
    def solvent(self) -> bool:
        """Drafts have not lost more than they may. Asked before each step, which adds what it may lose."""
        self._credit = min(self._credit + _ALLOWANCE, self._most_credit)
        return self._credit > 0.0

    @property
    def stake(self) -> float:
        """Steps that the next one may lose, were nothing of it to come true."""
        return self._credit + 1.0

    def affords(self, n_sequences: int, us: float) -> bool:
        """So much time may be lost now."""
        return us <= self._credit * self._pace.decode_us(n_sequences)

    def pay(self, n_sequences: int, us: float) -> None:
        """So much time went into drafts beside the steps that verify them."""
        if (plain_us := self._pace.decode_us(n_sequences)) > 0:
            self._credit -= us / plain_us

    def steps(self, n_sequences: int, us: float) -> float:
        """So much time as a share of a step without drafts."""
        return us / max(self._pace.decode_us(n_sequences), 1.0)

    def learn(self, n_sequences: int, n_drafted: int, n_accepted: int, duration_us: float) -> None:
        """Take in a step. Where all have drafts, none without would tell that the machine has become faster."""
        self._pace.learn_at_most(n_sequences, duration_us)
        plain_us = self._pace.decode_us(n_sequences)
        if plain_us <= 0:
            return
        known = self._shares.setdefault(n_sequences, {})
        most = 1.0 + _DEAREST_ROW * n_drafted
        told, before = min(max(1.0, duration_us / plain_us), most), known.get(n_drafted)
        if before is None:
            known[n_drafted] = 1.0 + _FIRST_BELIEF * (told - 1.0)
        else:
            known[n_drafted] = before + _NEWEST_COST * (told - before)
        self._n_refused = 0
        self._credit += (n_sequences + n_accepted) / n_sequences - told

    def refused(self, n_sequences: int) -> None:
        """A good draft was not worth its rows: after many of them it is tried again."""
        self._n_refused += 1
        if self._n_refused >= _PATIENCE:
            self._n_refused = 0
            known = self._shares.get(n_sequences, {})
            for n_drafted, share in known.items():
                known[n_drafted] = 1.0 + _DOUBT * (share - 1.0)

    def share(self, n_sequences: int, n_drafted: int) -> float:
        """A step with so many drafted rows, of one without."""
        known = self._shares.get(n_sequences)
        if known:
            return _between(known, n_drafted)
        alone = self._shares.get(1)
        if not alone or n_sequences == 1:
            return 1.0
        rows_us = (_between(alone, n_drafted) - 1.0) * self._pace.decode_us(1)
        return 1.0 + rows_us / max(self._pace.decode_us(n_sequences), 1.0)

    def most(self, n_sequences: int) -> int:
        """Rows that may be tried: at first three, which with the sequence's own fill a kernel that computes four at
        once, and then twice as many as have been, and one more.
        """
        return 2 * max(self._shares.get(n_sequences, {1: 1.0})) + 1


def _between(known: dict[int, float], n_drafted: int) -> float:
    """The cost of that many rows, on a line between the nearest that are known."""
    if n_drafted in known:
        return known[n_drafted]
    below = max((n for n in known if n < n_drafted), default=0)
    above = min((n for n in known if n > n_drafted), default=0)
    low = known.get(below, 1.0)
    if above:
        return low + (known[above] - low) * (n_drafted - below) / (above - below)
    slope = _UNKNOWN_SLOPE * (low - 1.0) / below if below else 0.0
    return low + slope * (n_drafted - below)


def rows_of(
    chances: Sequence[Sequence[float]], costs: RowCosts, *, most: int, drafting: Sequence[float] = ()
) -> list[int]:
    """How many drafted tokens each sequence has in this step; all 0 where none is worth it.

    `chances` are each sequence's, by `Acceptance.chances`. The likeliest rows come first, and none that makes the step
    slower for a stream than it wins it. `drafting`: what thinking of one more token takes of each sequence, as a share
    of a step; those of several sequences are thought of together.
    """
    n = len(chances)
    ranked = _ranked(chances)
    gains, rows = [1.0] * n, [0] * n
    best, best_rate = [0] * n, _GAIN
    won = float(n)
    for n_drafted, (chance, _, index) in enumerate(ranked[: min(most, costs.most(n))], start=1):
        gains[index] += chance
        rows[index] += 1
        won += chance
        if n_drafted not in _LENGTHS:
            continue
        share = costs.share(n, n_drafted)
        share += (
            max((each * n_rows for each, n_rows in zip(drafting, rows, strict=True)), default=0.0) if drafting else 0.0
        )
        if share - 1.0 > costs.stake:
            break
        if won / (n * share) > best_rate and min(gains) >= _FAIR * share * (1.0 if n == 1 else 0.99):
            best, best_rate = list(rows), won / (n * share)
    return best


def likely_rows(chances: Sequence[Sequence[float]], *, most: int) -> list[int]:
    """The same whatever rows cost: all tokens that come true rather than not, as far as there is room."""
    rows = [0] * len(chances)
    for chance, _, index in _ranked(chances)[:most]:
        rows[index] += chance >= _LIKELY
    return rows


def _ranked(chances: Sequence[Sequence[float]]) -> list[tuple[float, int, int]]:
    """Chance, minus its place in its draft, and whose it is; the likeliest first."""
    found = [(chance, -place, index) for index, own in enumerate(chances) for place, chance in enumerate(own)]
    return sorted(found, reverse=True)
