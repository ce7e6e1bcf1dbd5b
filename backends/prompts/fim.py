"""A fill-in-the-middle prompt as tokens: other files first, then prefix, suffix and the mark of the middle.

Pure: the engine hands in its vocabulary's marks and its tokenizer. The order is that of Qwen2.5-Coder's report
(arXiv 2409.12186, section 3) and of llama.cpp's server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.messages import FimFile, FimPrompt

_REPOSITORY = "myproject\n"
_CURRENT_FILE = "filename\n"
_LONG_FILE_BYTES = 1 << 16
"""From here on it is worth knowing whether a file can fit before it is tokenized."""
_SNIPPET = "\n\n--- snippet ---\n\n"


class InfillMarks(NamedTuple):
    """Token ids; a vocabulary without marks for repository and file separates files by a line of text."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None


def encode(
    prompt: FimPrompt,
    marks: InfillMarks,
    tokenize: Callable[[str], list[int]],
    *,
    opening: Sequence[int],
    room: int,
    longest_token_bytes: Callable[[], int] = lambda: _LONG_FILE_BYTES,
) -> tuple[list[int], int]:
    """Token ids, and how many files were left out so that they are at most `room`; the last files stay longest.

    A file that is too long by its bytes alone is not tokenized.
    """
    around = [
        *opening,
        marks.prefix,
        *tokenize(prompt.prefix),
        marks.suffix,
        *tokenize(prompt.suffix),
        marks.middle,
    ]
    if not prompt.files:
        return around, 0
    head = [] if marks.repository is None else [marks.repository, *tokenize(_REPOSITORY)]
    tail = [] if marks.file is None else [marks.file, *tokenize(_CURRENT_FILE)]
    left = room - len(around) - len(head) - len(tail)
    kept: list[list[int]] = []
    for file in reversed(prompt.files):
        if len(file.text) > _LONG_FILE_BYTES and len(file.text) > left * longest_token_bytes():
            break
        tokens = _file(file, marks, tokenize)
        left -= len(tokens)
        if left < 0:
            break
        kept.append(tokens)
    omitted = len(prompt.files) - len(kept)
    if not kept:
        return around, omitted
    files = [token for tokens in reversed(kept) for token in tokens]
    return [*around[: len(opening)], *head, *files, *tail, *around[len(opening) :]], omitted


def _file(file: FimFile, marks: InfillMarks, tokenize: Callable[[str], list[int]]) -> list[int]:
    if marks.file is None:
        return tokenize(_SNIPPET + file.text)
    return [marks.file, *tokenize(file.name + "\n"), *tokenize(file.text)]
