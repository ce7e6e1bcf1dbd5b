"""Texts that llama.cpp cannot take whole: cut where its tokens stay the same, or nearly so.

Its pre-tokenizers match by recursion: one piece of 27 000 characters overflows the stack of a thread. And the time it
takes for control tokens in a text grows with the square of their number. Knows no vocabulary.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHORT_CHARS: Final = 16_384
"""Texts up to this length are not cut behind literals."""
MAX_STRETCH: Final = 8_192
"""Characters with no change between white space and anything else: no piece is longer."""
MAX_LITERALS: Final = 1_000
_SHORT: Final = re.compile(rf"(?:\S{{1,{MAX_STRETCH - 1}}}+(?=\s|\Z)|\s{{1,{MAX_STRETCH - 1}}}+(?=\S|\Z))*+")
"""Shorter stretches, as many as follow each other. Possessive: each character is looked at once."""


def after_literals(text: str, literals: re.Pattern[str] | None) -> Iterator[str]:
    """The text cut behind every thousandth literal of a token: what is behind one is tokenized anew anyway."""
    start = 0
    for n, match in enumerate(literals.finditer(text) if literals else (), 1):
        if n % MAX_LITERALS == 0:
            yield text[start : match.end()]
            start = match.end()
    yield text[start:]


def within_stretches(text: str) -> Iterator[str]:
    """The text with long stretches cut: before a mark of punctuation behind a letter where there is one."""
    start = 0
    while (first := _end_of_short(text, start)) < len(text):
        end = _place(text, first, first + MAX_STRETCH)
        yield text[start:end]
        start = end
    yield text[start:]


def _end_of_short(text: str, start: int) -> int:
    """Where the first long stretch begins; the length of the text where there is none."""
    match = _SHORT.match(text, start)
    assert match is not None  # it may be empty
    return match.end()


def _place(text: str, first: int, last: int) -> int:
    """Where a pre-tokenizer begins a new piece, as late as possible; `last` where it begins none."""
    places = range(last - 1, first, -1)
    return next((i for i in places if text[i - 1].isalpha() and _begins_a_piece(text[i])), last)


def _begins_a_piece(char: str) -> bool:
    return char not in "'\u2019" and unicodedata.category(char).startswith("P")


def fragments(text: str, literals: re.Pattern[str] | None, *, recursive: bool) -> Iterable[str]:
    """The text in parts for one call each; `recursive` where its pieces are found by recursion."""
    if len(text) <= MAX_STRETCH:
        return [text]
    parts = after_literals(text, literals) if len(text) > SHORT_CHARS else [text]
    return itertools.chain.from_iterable(map(within_stretches, parts)) if recursive else parts
