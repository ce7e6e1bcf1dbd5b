"""A Hugging Face tokenizer as prompts and engines see a vocabulary: text to ids, ids to exact bytes.

What it decides about text is the folder's; which control tokens are recognised is decided by the caller.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tokenizers import pre_tokenizers

from backends.capabilities import FIM_MARKS
from backends.engine import JobError
from backends.prompts.control import Control, PlainText, looks_like_one
from backends.prompts.fim import InfillMarks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from backends.generation.media import MediaTower

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time, in the thread that asks
_PANIC: Final = "PanicException"
"""What the library raises where its expressions give up; it is no `Exception`, so it would end the worker."""
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "\u2581"
_ENDS: Final = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>",
     "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end_of_turn|>", "<|return|>", "<|call|>", "<EOT>",
     "<|END_OF_TURN_TOKEN|>"}
)  # fmt: skip
"""Control tokens that end a turn wherever they are in a vocabulary; llama.cpp knows the same ones."""
_REPOSITORY: Final = ("<|repo_name|>", "<repo_name>", "<reponame>")
_FILE: Final = ("<|file_sep|>", "<file_sep>")


class FolderVocabulary:
    """For any number of threads: one tokenizer reads control tokens and one does not, and neither is changed."""

    tower: MediaTower | None = None
    """None: it reads text alone."""
    identity = ""
    """Of the folder's weights; see `DecoderModel`."""

    def __init__(self, tokenizer: Any, *, n_vocab: int, ends: set[int]) -> None:
        """`tokenizer` is a fast tokenizer of transformers, `n_vocab` the width of the model's logits."""
        self.n_vocab = n_vocab
        self._source = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        self._added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        described = json.loads(self._backend.to_str())
        self._spell = _speller(described.get("decoder"))
        self._pieces: list[bytes | None] = [None] * n_vocab
        self._text = _of_text(self._backend, described)
        self._ends = np.array(sorted({e for e in ends if e < n_vocab} | self._known_ends()), dtype=np.int32)
        self._bos, self._opening = self._first_tokens()
        self.plain: Final = PlainText(
            self.controls(), unknown=self._unknown(described["model"]), pieces=self._all_pieces
        )

    def _known_ends(self) -> set[int]:
        special = {t for t, added in self._added.items() if added.special and added.content in _ENDS}
        return {token for token in special if token < self.n_vocab}

    def _first_tokens(self) -> tuple[int | None, int | None]:
        """What the tokenizer puts in front of a text, and what an empty prompt becomes."""
        plain = self._backend.encode("x", add_special_tokens=False).ids
        full = self._backend.encode("x", add_special_tokens=True).ids
        at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        known = (self._source.bos_token_id, self._source.eos_token_id)
        return full[0] if at else None, next((token for token in known if token is not None), None)

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of `text`, without BOS or EOS; special-token literals count as such only with `parse_special`."""
        text = text.encode("utf-8", "replace").decode()
        tokenizer = self._backend if parse_special else self._text
        try:
            ids: list[int] = encoded(tokenizer, text, add_special_tokens=False).ids
        except BaseException as error:
            if type(error).__name__ != _PANIC:
                raise
            told = "the folder's tokenizer cannot split this text: its expression takes too long"
            raise JobError("invalid_value", told, param="prompt") from None
        if ids and max(ids) >= self.n_vocab:
            told = f"the folder's tokenizer makes token {max(ids)} of this text, and the model has {self.n_vocab}"
            raise JobError("invalid_value", f"{told}. hint: its tokenizer.json is another model's", param="prompt")
        return ids if parse_special else self.plain(ids)

    def _unknown(self, model: Mapping[str, Any]) -> int | None:
        name = model.get("unk_token")
        token: int | None = model.get("unk_id") if name is None else self._backend.token_to_id(name)
        return token

    def _all_pieces(self) -> list[bytes]:
        return [self.piece(token) for token in range(self.n_vocab)]

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for control tokens and for ids that no token has."""
        cached = self._pieces[token]
        if cached is None:
            added = self._added.get(token)
            cached = b"" if added is not None and added.special else self.literal(token)
            self._pieces[token] = cached
        return cached

    def literal(self, token: int) -> bytes:
        """The bytes of one token, control tokens included."""
        added = self._added.get(token)
        if added is not None:
            return str(added.content).encode()
        text = self._backend.id_to_token(token)
        return b"" if text is None else self._spell(text)

    def controls(self) -> list[Control]:
        """Every control token with a literal."""
        return [
            Control(token, added.content, bool(added.lstrip), bool(added.rstrip))
            for token, added in self._added.items()
            if (added.special or looks_like_one(added.content)) and added.content and token < self.n_vocab
        ]

    def ends(self) -> NDArray[np.int32]:
        """`(n,) int32`: the tokens that end a generation."""
        return self._ends

    @property
    def bos(self) -> int | None:
        """The token that begins every prompt, where the tokenizer puts one."""
        return self._bos

    @property
    def opening(self) -> int | None:
        """What an empty prompt becomes."""
        return self._opening

    def special_texts(self) -> dict[str, str]:
        """`bos_token`, `eos_token` ... as chat templates expect them."""
        named: Mapping[str, Any] = self._source.special_tokens_map
        texts = {name: text for name, text in named.items() if isinstance(text, str)}
        return {"bos_token": "", "eos_token": "", "pad_token": "", **texts}

    def chat_template(self, name: str | None = None) -> str | None:
        """The source of the folder's chat template, or of its named variant."""
        source = self._source.chat_template
        if isinstance(source, dict):
            found = source.get(name or "default")
            return found if isinstance(found, str) else None
        return source if name is None and isinstance(source, str) else None

    def infill_marks(self) -> InfillMarks | None:
        """The tokens that mark prefix, suffix and middle; None when the vocabulary has no fill-in-the-middle."""
        for names in FIM_MARKS:
            ids = [self._backend.token_to_id(name) for name in names]
            if all(token is not None and token < self.n_vocab for token in ids):
                return InfillMarks(
                    ids[0], ids[1], ids[2], repository=self._first_of(_REPOSITORY), file=self._first_of(_FILE)
                )
        return None

    def close(self) -> None:
        """Nothing is held outside of Python."""

    def _first_of(self, names: tuple[str, ...]) -> int | None:
        ids = (self._backend.token_to_id(name) for name in names)
        return next((token for token in ids if token is not None and token < self.n_vocab), None)


def encoded(tokenizer: Any, *texts: str, add_special_tokens: bool) -> Any:
    """One encoding of a text or of a pair. Only the library's way for many lets other threads run meanwhile."""
    return tokenizer.encode_batch([texts if len(texts) > 1 else texts[0]], add_special_tokens=add_special_tokens)[0]


def _of_text(backend: Any, described: Mapping[str, Any]) -> Any:
    """A copy of the tokenizer for text that is not the first of its prompt, to which control tokens are text.

    A Metaspace with `prepend_scheme = "first"` puts its sign before the text only where a prompt begins.
    """
    copied = type(backend).from_str(backend.to_str())
    copied.encode_special_tokens = True
    own = described.get("pre_tokenizer") or {}
    if own.get("type") == "Metaspace" and own.get("prepend_scheme") == "first":
        sign = own.get("replacement", _SPACE)
        copied.pre_tokenizer = pre_tokenizers.Metaspace(sign, prepend_scheme="never", split=own.get("split", True))
    return copied


class _Speller:
    """The bytes of a token's text, by the kind of decoder the tokenizer has."""

    def __init__(self, *, byte_level: bool, metaspace: bool, byte_fallback: bool) -> None:
        self._chars = byte_characters() if byte_level else {}
        self._metaspace = metaspace
        self._byte_fallback = byte_fallback

    def __call__(self, text: str) -> bytes:
        if self._chars:
            return b"".join(bytes([self._chars[c]]) if c in self._chars else c.encode() for c in text)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace(_SPACE, " ").encode() if self._metaspace else text.encode()


def _speller(decoder: Any) -> _Speller:
    kinds = {d.get("type"): d for d in (decoder or {}).get("decoders", [decoder or {}])}
    replaces = any(d.get("type") == "Replace" and _SPACE in str(d.get("pattern")) for d in kinds.values())
    return _Speller(
        byte_level="ByteLevel" in kinds,
        metaspace="Metaspace" in kinds or replaces,
        byte_fallback="ByteFallback" in kinds,
    )


def byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable ones are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
