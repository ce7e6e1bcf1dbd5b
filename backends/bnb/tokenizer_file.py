"""What a tokenizer.json may ask of the library before every text: bounded, because no clock stops it once it computes.

The library normalises and splits a text in one call, with Python's lock held. Forty replacements of one letter by two
make a terabyte of it. Vocabulary and merges are skipped here, not built.
Format: https://huggingface.co/docs/tokenizers/api/normalizers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from backends.engine import LoadError
from backends.files import model_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME: Final = "tokenizer.json"
MOST_GROWTH: Final = 64
"""How many times longer its steps may make a text; those of known models make it 1 to 4 times as long."""
MOST_ADDED_CHARS: Final = 1024
MOST_STEPS: Final = 64
MOST_SPECIAL: Final = 256
MOST_WORD_CHARS: Final = 1000
"""Of a WordPiece vocabulary, which looks at every part of a word; 100 is usual."""
_INSIDE: Final = ("normalizers", "pretokenizers", "processors")
_MOST_DEPTH: Final = 32


class _Model(msgspec.Struct):
    max_input_chars_per_word: Any = None


class _Tokenizer(msgspec.Struct):
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    model: _Model = msgspec.field(default_factory=_Model)


def check(folder: Path) -> None:
    """Raises LoadError for steps that make a text too long, with what to do. Blocks on the disk."""
    try:
        raw = model_files.read_bytes(folder / NAME, model_files.VOCABULARY_BYTES)
        told = msgspec.json.decode(raw, type=_Tokenizer)
    except model_files.MissingError:
        return  # made of other files by the library, with steps of its own
    except model_files.FileError as error:
        raise LoadError(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise LoadError(f"{NAME} is no tokenizer: {error}. hint: was it downloaded completely?") from None
    _check_growth([*_steps(told.normalizer), *_steps(told.pre_tokenizer)])
    _check_special(list(_steps(told.post_processor)))
    longest = told.model.max_input_chars_per_word
    if isinstance(longest, int) and longest > MOST_WORD_CHARS:
        raise LoadError(f"{NAME} takes words of {longest} characters whole, and {MOST_WORD_CHARS} are the most")


def _check_growth(steps: list[dict[str, Any]]) -> None:
    if len(steps) > MOST_STEPS:
        raise LoadError(f"{NAME} has {len(steps)} steps before a text is split, and {MOST_STEPS} are the most")
    growth = 1.0
    for step in steps:
        added, factor = _growth(step)
        growth *= factor
        if added > MOST_ADDED_CHARS or growth > MOST_GROWTH:
            raise LoadError(
                f"{NAME} makes a text too long before it is split (by a step of kind {str(step.get('type'))[:40]!r}): "
                f"at most {MOST_GROWTH} times as long and {MOST_ADDED_CHARS} characters longer are allowed. "
                "hint: the file is damaged or made to do harm; take the publisher's"
            )


def _growth(step: dict[str, Any]) -> tuple[int, float]:
    """Characters that a step puts before a text, and how many times longer it makes the rest."""
    match step:
        case {"type": "Prepend", "prepend": str(text)}:
            return len(text), 1.0
        case {"type": "Replace", "content": str(text), "pattern": {"String": str(pattern)}}:
            return 0, max(1.0, len(text) / max(1, len(pattern)))
        case {"type": "Replace", "content": str(text)}:
            return 0, max(1.0, float(len(text)))
        case {"type": "ByteLevel"}:
            return 1, 2.0
        case {"type": "Metaspace", "replacement": str(sign)}:
            return len(sign), max(1.0, float(len(sign)))
    return 0, 1.0


def _check_special(steps: list[dict[str, Any]]) -> None:
    """What is put around every text."""
    n = sum(_n_leaves(step) for step in steps)
    if n > 16 * MOST_SPECIAL or len(steps) > MOST_STEPS:
        raise LoadError(f"{NAME} puts more than {MOST_SPECIAL} tokens around every text")


def _n_leaves(value: Any) -> int:
    left, n = [value], 0
    while left:
        item = left.pop()
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        n += 1 if not isinstance(item, (dict, list)) else 0
        left.extend(inside)
    return n


def _steps(part: Any, *, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The steps of a part in their order, sequences opened."""
    if depth > _MOST_DEPTH:
        raise LoadError(f"{NAME} nests its steps deeper than {_MOST_DEPTH}")
    if not isinstance(part, dict):
        return
    inner = next((part[key] for key in _INSIDE if isinstance(part.get(key), list)), None)
    if inner is None:
        yield part
        return
    for step in inner:
        yield from _steps(step, depth=depth + 1)
