"""What the Hugging Face tokenizer of a folder really does, asked by letting it tokenize."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quantize.errors import QuantizeError
from quantize.hf.vocabulary import SPACE


@dataclass(frozen=True)
class Reference:
    """A tokenizer.json at work."""

    tokenizer: Any
    added_first: int | None
    """Token it puts before every text, or None."""
    added_last: int | None
    n_added: tuple[int, int] = (0, 0)
    """How many tokens it puts before and behind; llama.cpp puts one at most."""

    def tokens(self, text: str) -> list[int]:
        """Ids without special tokens added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def prefixes_space(self) -> bool:
        """A SentencePiece text begins with a space sign of its own."""
        tokens: list[str] = self.tokenizer.encode("x", add_special_tokens=False).tokens
        return bool(tokens) and tokens[0].startswith(SPACE)


def load_reference(file: Path) -> Reference:
    """Raises QuantizeError for a file the library cannot read."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise QuantizeError(f"{file.name} cannot be read: {str(error)[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain = tokenizer.encode("x", add_special_tokens=False).ids
    full = tokenizer.encode("x", add_special_tokens=True).ids
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    before, after = full[:at], full[at + len(plain) :]
    return Reference(tokenizer, before[0] if before else None, after[-1] if after else None, (len(before), len(after)))
