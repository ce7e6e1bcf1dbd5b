"""Which tokens of a vocabulary go on with a text, end a line or spell a mark: masks that are made once and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from backends.constraints.vocabulary import ConstraintVocabulary


class Words:
    """Questions about a vocabulary's pieces, each answered once; masks are `(n_vocab,) bool`."""

    def __init__(self, vocabulary: ConstraintVocabulary) -> None:
        self._pieces = vocabulary.pieces
        self._ends = list(vocabulary.ends)
        self._tokenize = vocabulary.tokenize
        self._known: dict[tuple[str, bytes], NDArray[np.bool_]] = {}
        self._spellings: dict[bytes, list[int]] = {}

    def prepare(self, opening: bytes, closing: bytes) -> None:
        """Answer ahead what the first steps will ask."""
        self.continuing(opening)
        self.overshooting(closing)
        self.spelling(closing)
        _ = self.line_ends, self.going_on

    def continuing(self, rest: bytes) -> NDArray[np.bool_]:
        """Tokens that are a beginning of `rest`."""
        return self._mask("continuing", rest, lambda piece: rest.startswith(piece))

    def overshooting(self, rest: bytes) -> NDArray[np.bool_]:
        """Tokens that hold `rest` and then more than white space."""
        return self._mask("overshooting", rest, lambda piece: bool(piece.partition(rest)[2].strip()))

    @property
    def line_ends(self) -> NDArray[np.bool_]:
        """Tokens of line ends alone, as models write them between reasoning and answer."""
        return self._mask("line ends", b"", lambda piece: not piece.strip(b"\r\n"))

    @property
    def going_on(self) -> NDArray[np.bool_]:
        """All tokens but the ends."""
        key = ("going on", b"")
        if key not in self._known:
            mask = np.ones(len(self._pieces), dtype=np.bool_)
            mask[self._ends] = False
            self._known[key] = mask
        return self._known[key]

    def only(self, token: int) -> NDArray[np.bool_]:
        """One token."""
        mask = np.zeros(len(self._pieces), dtype=np.bool_)
        mask[token] = True
        return mask

    def spelling(self, text: bytes) -> list[int]:
        """Tokens that write `text`: the one that is it, where there is one."""
        if text not in self._spellings:
            whole = next((token for token, piece in enumerate(self._pieces) if piece == text), None)
            self._spellings[text] = self._tokenize(text) if whole is None else [whole]
        return list(self._spellings[text])

    def _mask(self, kind: str, rest: bytes, holds: Callable[[bytes], bool]) -> NDArray[np.bool_]:
        key = (kind, rest)
        if key not in self._known:
            found = (bool(piece) and holds(piece) for piece in self._pieces)
            self._known[key] = np.fromiter(found, dtype=np.bool_, count=len(self._pieces))
        return self._known[key]
