"""From a text to pieces that a voice can say at once: sentences, none so long that its sound takes much memory.

Pure. What the reader of words cannot take is spelled: numbers that have no name, words that no language has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_CHARS: Final = 240
"""Of one piece. Speech has about 15 characters a second."""
_MOST_WORD: Final = 40
"""Longer ones are cut: the time to read a word grows with its length more than evenly."""
_MOST_DIGITS: Final = 15
"""Larger numbers have no name, and are said digit by digit."""
_LINES: Final = re.compile(r"\s*\n\s*")
_END: Final = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+(?=\S)")
_CLAUSE: Final = re.compile(r"(?<=[,;:\u2014])\s+")
_DIGITS: Final = re.compile(rf"\d{{{_MOST_DIGITS + 1},}}")
_MARKS: Final = re.compile(r"([^\w\s])\1{3,}")
"""The same mark many times over."""
_TITLES: Final = frozenset(
    {"Mr", "Mrs", "Ms", "Dr", "Prof", "St", "Sr", "Jr", "Gen", "Col", "Capt", "Lt", "Sgt", "Rev", "Hon", "vs", "No"}
)


def pieces(text: str) -> list[str]:
    """The text in order, each piece at most `MOST_CHARS` characters."""
    found: list[str] = []
    for line in _LINES.split(text.strip()):
        for sentence in _sentences(_spelled(line)):
            found += _short(sentence)
    return [one for one in found if any(c.isalnum() for c in one)]


def _spelled(line: str) -> str:
    line = _DIGITS.sub(lambda match: " ".join(match[0]), line)
    line = _MARKS.sub(lambda match: match[1] * 3, line)
    return " ".join(word[at : at + _MOST_WORD] for word in line.split() for at in range(0, len(word), _MOST_WORD))


def _sentences(line: str) -> Iterator[str]:
    """Cut behind the end of each sentence; titles and initials end none."""
    begin = 0
    for end in _END.finditer(line):
        word = line[begin : end.start()].rpartition(" ")[2].rstrip(".").lstrip("(\"'\u201c\u2018")
        is_short = line[end.start() - 1] == "." and (word in _TITLES or (len(word) == 1 and word.isupper()))
        if not is_short and not line[end.end()].islower():
            yield line[begin : end.end()].strip()
            begin = end.end()
    yield line[begin:].strip()


def _short(sentence: str) -> list[str]:
    """The sentence, where it is long cut at its clauses, and where these are long between words."""
    if len(sentence) <= MOST_CHARS:
        return [sentence] if sentence else []
    clauses = _joined(_CLAUSE.split(sentence))
    return [one for clause in clauses for one in (_joined(clause.split(" ")) if len(clause) > MOST_CHARS else [clause])]


def _joined(parts: list[str]) -> list[str]:
    """Parts in a row as long as they fit into one piece."""
    found: list[str] = []
    for part in parts:
        if found and len(found[-1]) + 1 + len(part) <= MOST_CHARS:
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found
