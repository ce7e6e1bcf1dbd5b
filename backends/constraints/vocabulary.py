"""A model's vocabulary as constraints see it: what each token adds to a text, and which tokens end one.

Owns the bridge to llguidance's tokenizer, which is made once per model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper

_IN_STRINGS: Final = r'[^"\\\x00-\x1F\x7F]{1,10}'
"""Tokens that llguidance judges together, because they may come almost anywhere in a string. Its own four such groups
make no mask faster than this one and take 40 MB more (128 000 tokens, a schema of strings)."""

_MOST_BYTES: Final = 1000
"""Of a token that a constraint may choose: llguidance panics at one of more than 1024 bytes."""


@dataclass(frozen=True)
class ConstraintVocabulary:
    """Made by an engine of its model's tokenizer."""

    pieces: Sequence[bytes]
    """The bytes each token adds to a text; empty where it adds none. As many as the logits have columns."""
    ends: Sequence[int]
    """Tokens that end a text."""
    tokenize: Callable[[bytes], list[int]]
    """Ordinary tokens of some text."""

    def tokenizer(self) -> LLTokenizer:
        """llguidance's view of it: 0.15 s for 128 000 tokens, in which Python does nothing else."""
        return LLTokenizer(
            TokenizerWrapper(_Adapter(self)), n_vocab=len(self.pieces), eos_token=list(self.ends), slices=[_IN_STRINGS]
        )


class _Adapter:
    """The attributes that llguidance asks a tokenizer for."""

    def __init__(self, vocabulary: ConstraintVocabulary) -> None:
        ends = frozenset(vocabulary.ends)
        self.eos_token_id = next(iter(vocabulary.ends))
        self.bos_token_id = None
        # A leading 0xFF marks a token that no text holds.
        self.tokens = [
            b"\xff<%d>" % token if token in ends or not piece or len(piece) > _MOST_BYTES else piece
            for token, piece in enumerate(vocabulary.pieces)
        ]
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if piece.startswith(b"\xff<")]
        self._tokenize = vocabulary.tokenize

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenize(text if isinstance(text, bytes) else text.encode())
