"""Drafts from other text: what repeats its prompt, a prediction, a cached text or itself goes on as it did there. Pure.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding) with a pointer that stays: while what it points at
comes true it moves on, and where a word was changed it looks for its way back. What it would have drafted is held
against what came, whether it was drafted or not, so that its worth is known before a row is spent on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

BORDER: Final = -1
"""Between two texts: nothing goes on over it."""
LONGEST: Final = 16
"""Tokens that a match is told to have at most."""
MOST_KNOWN: Final = 1 << 15
"""Tokens of a prompt, its last ones, that are looked through."""
_INDEXED_AT_ONCE: Final = 512
"""Positions of the prompt per token, so that a long one holds up no step: 0.1 ms."""
_WAY_BACK: Final = 24
"""Tokens behind a lost place in which the text may go on."""
_LOST_FOR: Final = 8
"""Tokens after which a lost place is given up."""
_CERTAIN: Final = 4
"""A match so long is a copy, and where it breaks one token was changed rather than the place wrong."""
_SHIFT: Final = 21


class TextLookup:
    """One text of one sequence. `at` is the place whose token comes next, or -1, `matched` how long it has held."""

    def __init__(
        self, prompt: Sequence[int], prediction: Sequence[int] = (), cached: Sequence[Sequence[int]] = ()
    ) -> None:
        """A prediction is what the text is thought to be: it holds from the start. `cached` are other texts of the same
        domain; where the prompt has the same words, it is the prompt that goes on.
        """
        before = [BORDER, *prediction, BORDER] if prediction else [BORDER]
        self._n_predicted = len(before) if prediction else 0
        for text in cached:
            before += [*text, BORDER]
        self._n_before = len(before)
        self._text = [*before, *prompt[-MOST_KNOWN:]]
        self._n_given = len(self._text)
        self._n_indexed, self._n_indexed_before = max(2, self._n_before), 2
        self._singles: dict[int, int] = {}
        self._pairs: dict[int, int] = {}
        self._triples: dict[int, int] = {}
        """The last place behind each token, and behind each two and three that follow each other."""
        self._lost, self._n_lost = 0, 0
        self.at = 1 if prediction else -1
        self.matched = _CERTAIN if prediction else 0
        self.n_foretold = 0
        """Tokens that came as the prediction had them."""

    def follow(self, token: int) -> bool | None:
        """Take in the text's next token; whether it is the one pointed at, None where nothing was."""
        text = self._text
        if self._n_indexed < self._n_given:
            self._index()
        elif self._n_indexed_before < self._n_before:
            self._index_before()
        hit = None
        if self.at >= 0 and text[self.at] == BORDER:
            self.at = -1
        if self.at >= 0:
            hit = text[self.at] == token
            if hit:
                self.n_foretold += self.at < self._n_predicted
                self.at += 1
                self.matched = min(self.matched + 1, LONGEST)
            else:
                if self.matched >= _CERTAIN:
                    self._lost, self._n_lost = self.at, 0
                self.at = -1
        text.append(token)
        self._remember(broke=hit is False)
        return hit

    @property
    def drafter(self) -> str:
        """Whose drafts these are, of `DRAFTERS`."""
        if 0 <= self.at < self._n_predicted:
            return "prediction"
        return "cache" if 0 <= self.at < self._n_before else "ngram"

    def draft(self, most: int) -> list[int]:
        """What comes next if the text goes on as it did, at most so many tokens."""
        if self.at < 0:
            return []
        found = self._text[self.at : self.at + most]
        return found[: found.index(BORDER)] if BORDER in found else found

    def _index(self) -> None:
        """Take in more of what was there at the start."""
        text, first = self._text, self._n_indexed
        self._n_indexed = end = min(first + _INDEXED_AT_ONCE, self._n_given)
        triples, pairs, singles = self._triples, self._pairs, self._singles
        for place in range(first + 1, end + 1):
            pair = text[place - 2] << _SHIFT | text[place - 1]
            singles[text[place - 1]] = pairs[pair] = place
            if place > 2:
                triples[text[place - 3] << 2 * _SHIFT | pair] = place

    def _index_before(self) -> None:
        """The same of texts before the prompt, whose places count where there are no others."""
        text, first = self._text, self._n_indexed_before
        self._n_indexed_before = end = min(first + _INDEXED_AT_ONCE, self._n_before)
        for place in range(first + 1, end + 1):
            pair = text[place - 2] << _SHIFT | text[place - 1]
            self._singles.setdefault(text[place - 1], place)
            self._pairs.setdefault(pair, place)
            if place > 2:
                self._triples.setdefault(text[place - 3] << 2 * _SHIFT | pair, place)

    def _remember(self, *, broke: bool) -> None:
        """The end of the text: where it stood before, if that is asked for, and that it stands here now."""
        text, size = self._text, len(self._text)
        if size < 4:
            return
        pair = text[-2] << _SHIFT | text[-1]
        triple = text[-3] << 2 * _SHIFT | pair
        if self.at < 0:
            self._find(pair, triple, broke=broke)
        self._singles[text[-1]] = self._pairs[pair] = self._triples[triple] = size

    def _find(self, pair: int, triple: int, *, broke: bool) -> None:
        place = self._triples.get(triple, -1)
        if place < 0 and self._lost:
            place = self._lost + 1 if broke and self._n_lost == 0 else self._way_back()
            self._n_lost += 1
            if self._n_lost > _LOST_FOR:
                self._lost = 0
        if place < 0:
            place = self._pairs.get(pair, -1)
        if place < 0:
            place = self._singles.get(self._text[-1], -1)
        if 0 < place < len(self._text) and self._text[place] != BORDER:
            self.at, self.matched = place, self._length(place)

    def _way_back(self) -> int:
        """The place behind the text's last two tokens, near to where it was lost; -1 where there is none."""
        text = self._text
        for place in range(self._lost + 1, min(self._lost + _WAY_BACK, len(text) - 2)):
            if text[place] == text[-1] and text[place - 1] == text[-2]:
                return place + 1
        return -1

    def _length(self, place: int) -> int:
        """How many tokens before a place are those at the text's end."""
        text, size, n = self._text, len(self._text), 0
        while n < LONGEST and n < place and text[place - 1 - n] == text[size - 1 - n] != BORDER:
            n += 1
        return n
