"""The vocabulary of a GGUF file as llama.cpp takes it: what it would abort on is refused with a sentence.

llama.cpp asserts that no two tokens are alike, and looks bytes up in SentencePiece vocabularies without a doubt.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from backends.capabilities import has_infill_tokens
from backends.gguf.known import MERGING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOKENS: Final = "tokenizer.ggml.tokens"
TYPES: Final = "tokenizer.ggml.token_type"
SCORES: Final = "tokenizer.ggml.scores"
MERGES: Final = "tokenizer.ggml.merges"
_BYTE_TYPE: Final = 6
_ABSENT: Final = 2**32 - 1
_WITHOUT_MERGES: Final = frozenset({"kimi-k2"})
_INT32, _FLOAT32, _STRING = 5, 6, 8
_LISTS: Final[Mapping[str, tuple[tuple[int, ...], str]]] = {
    TOKENS: ((_STRING,), "texts"),
    MERGES: ((_STRING,), "texts"),
    TYPES: ((_INT32,), "int32"),
    SCORES: ((_FLOAT32, _INT32), "float32"),
}
"""What llama.cpp takes as the elements of each; GGUF's numbers of the types, and their names."""


def wrong_list(key: str, kind: int | None) -> str | None:
    """What is wrong with the type of a key's elements; None as `kind` says that it is no list."""
    if key not in _LISTS or kind in _LISTS[key][0]:
        return None
    return f"{key} is no list of {_LISTS[key][1]}. hint: take the publisher's file, or convert the model again"


def problem(
    tokens: Sequence[bytes], types: bytes, metadata: Mapping[str, object], lengths: Mapping[str, int]
) -> str | None:
    """What is wrong with a vocabulary; `types` are its token types as int32. None where nothing is."""
    kind = metadata.get("tokenizer.ggml.model")
    for key, what in ((TYPES, "types"), (SCORES, "scores")):
        n = lengths.get(key)
        if n is not None and n < len(tokens):
            return f"the vocabulary has {len(tokens)} tokens and {n} {what}"
    if (twice := _duplicate(tokens)) is not None:
        return f"two tokens of the vocabulary are alike: {_shown(twice)}. hint: convert the model again"
    merges = kind in MERGING and (kind == "gemma4" or metadata.get("tokenizer.ggml.pre") not in _WITHOUT_MERGES)
    if merges and MERGES not in lengths:
        return f"the vocabulary is of merged pieces ({kind}), and the file has no merges. hint: convert the model again"
    if kind == "llama" and (byte := _missing_byte(set(tokens))) is not None:
        return f"the vocabulary is of SentencePiece and has no token for the byte {byte:#04x}"
    if kind in ("llama", "gpt2") and (wrong := _no_byte(tokens, types)) is not None:
        return f"the token {_shown(wrong)} is marked as a byte and is none"
    return None


def remarks(metadata: Mapping[str, object], n_tokens: int) -> list[str]:
    """Special tokens that are none of the vocabulary; llama.cpp takes its own idea of them instead."""
    found = []
    for key, value in metadata.items():
        if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")) or isinstance(value, bool):
            continue
        if n_tokens and isinstance(value, int) and not 0 <= value < n_tokens and value not in (-1, _ABSENT):
            found.append(f"{key} is {value}, and the vocabulary has {n_tokens} tokens: llama.cpp takes its default")
    return found


def infills(tokens: Sequence[bytes], metadata: Mapping[str, object]) -> bool:
    """Whether llama.cpp will have tokens for fill-in-the-middle: by number, else by text."""
    named = all(
        any(_is_token(metadata.get(f"tokenizer.ggml.{key}_token_id"), len(tokens)) for key in keys)
        for keys in (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
    )
    return named or has_infill_tokens(frozenset(tokens))


def _is_token(value: object, n_tokens: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_tokens


def _duplicate(tokens: Sequence[bytes]) -> bytes | None:
    """A token that is there twice; llama.cpp names empty ones by their ids."""
    if len(set(tokens)) == len(tokens) and b"" not in tokens:
        return None
    seen: set[bytes] = set()
    for i, token in enumerate(tokens):
        name = token or b"[EMPTY_%d]" % i
        if name in seen:
            return name
        seen.add(name)
    return None


def _missing_byte(tokens: set[bytes]) -> int | None:
    return next((n for n in range(256) if b"<0x%02X>" % n not in tokens and bytes([n]) not in tokens), None)


def _no_byte(tokens: Sequence[bytes], types: bytes) -> bytes | None:
    """A token of type byte that is not spelled as one."""
    n = min(len(tokens), len(types) // 4)
    if not n or struct.pack("<i", _BYTE_TYPE) not in types:
        return None
    for token, kind in zip(tokens, struct.unpack(f"<{n}i", types[: 4 * n]), strict=False):
        if kind == _BYTE_TYPE and not (len(token) == 6 and token.startswith(b"<0x")):
            return token
    return None


def _shown(token: bytes) -> str:
    return repr(token[:40].decode("utf-8", "replace"))
