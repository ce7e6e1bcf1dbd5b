"""A vocabulary as llama.cpp wants it, read from tokenizer.json or, where that is missing, from tokenizer.model.

Three kinds: byte-level BPE ("gpt2"), SentencePiece BPE ("llama") and WordPiece ("bert").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gguf

from quantize.errors import QuantizeError
from quantize.hf import sentencepiece
from quantize.hf.source import read_json
from quantize.words import shown

SPACE: Final = "\u2581"
"""How SentencePiece spells a space."""
_BYTE_PIECE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_LOOKS_SPECIAL: Final = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d*>|<pad>|<mask>|<2mass>|\[@BOS@\]")
"""Added tokens of well-known models that are not marked special and are (deepseek-coder, gemma)."""
_SPELLED_SPACE: Final = "\u0120"
"""How byte-level BPE spells a space."""


@dataclass
class HfVocabulary:
    """Tokens in the order of their ids."""

    kind: str
    """tokenizer.ggml.model: gpt2, llama or bert."""
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    add_space_prefix: bool | None = None
    tokenizer_json: Path | None = None
    """The file whose behaviour is the reference."""

    def pad(self, n_rows: int) -> None:
        """Unused tokens up to the rows of the embedding matrix."""
        if len(self.tokens) > n_rows:
            raise QuantizeError(f"the tokenizer has {len(self.tokens)} tokens, the embedding matrix {n_rows} rows")
        for i in range(len(self.tokens), n_rows):
            self.tokens.append(f"[PAD{i}]")
            self.types.append(int(gguf.TokenType.UNUSED))
            if self.scores:
                self.scores.append(-10_000.0)

    def write(self, writer: Any, pre: str) -> None:
        """Into a GGUFWriter."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)


def read_vocabulary(path: Path, *, n_rows: int) -> HfVocabulary:
    """The vocabulary of a model folder, padded to the rows of its embedding. Raises QuantizeError."""
    file = path / "tokenizer.json"
    tokenizer = read_json(file)
    if tokenizer is not None:
        vocabulary = _from_tokenizer_json(tokenizer)
        vocabulary.tokenizer_json = file
    elif (path / "tokenizer.model").is_file():
        vocabulary = _from_sentencepiece(path)
    else:
        raise QuantizeError(f"{path.name} holds neither tokenizer.json nor tokenizer.model")
    vocabulary.pad(n_rows)
    return vocabulary


def _from_tokenizer_json(tokenizer: dict[str, Any]) -> HfVocabulary:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise QuantizeError(f"tokenizer.json holds a vocabulary of kind {shown(str(kind))}; BPE and WordPiece are read")
    vocab, added = model["vocab"], tokenizer.get("added_tokens") or []
    names = _by_id(vocab, added)
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind == "WordPiece":
        return _wordpiece(names, added, model)
    if kind != "BPE":
        raise QuantizeError(f"tokenizer.json holds a vocabulary of kind {shown(str(kind))}; BPE and WordPiece are read")
    pairs = _merge_pairs(model)
    if model.get("byte_fallback"):
        return _sentencepiece_like(names, added, pairs, model)
    types = _types(names, added)
    merges = [" ".join(half.replace(" ", _SPELLED_SPACE) for half in pair) for pair in pairs]
    return HfVocabulary(
        "gpt2", [_plain(name, kind) for name, kind in zip(names, types, strict=True)], types, merges=merges
    )


def _by_id(vocab: dict[str, Any], added: list[Any]) -> list[str]:
    """Names in the order of ids; an id without a name is a pad token."""
    names: dict[int, str] = {}
    for name, index in [*vocab.items(), *((one.get("content"), one.get("id")) for one in added)]:
        if not isinstance(index, int) or not isinstance(name, str) or not 0 <= index < 2**24:
            raise QuantizeError(f"tokenizer.json gives {shown(str(name))} the id {shown(str(index))}")
        names[index] = name
    if not names:
        raise QuantizeError("tokenizer.json holds no tokens")
    last = max(names)
    if last > 4 * len(names) + 4096:
        raise QuantizeError(f"tokenizer.json has {len(names)} tokens and ids up to {last}")
    return [names.get(index, f"[PAD{index}]") for index in range(last + 1)]


def _types(names: list[str], added: list[Any]) -> list[int]:
    kinds = gguf.TokenType
    special = {one["content"]: bool(one.get("special")) for one in added}
    types = []
    for index, name in enumerate(names):
        if name in special:
            is_control = special[name] or _LOOKS_SPECIAL.fullmatch(name) is not None
            types.append(int(kinds.CONTROL if is_control else kinds.USER_DEFINED))
        else:
            types.append(int(kinds.UNUSED if name == f"[PAD{index}]" else kinds.NORMAL))
    return types


def _plain(name: str, kind: int) -> str:
    """A user-defined token is matched in plain text, so its spaces are spelled as spaces."""
    return name.replace(SPACE, " ") if kind == gguf.TokenType.USER_DEFINED else name


def _merge_pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges in both spellings of the file: "a b" and ["a", "b"]."""
    pairs = []
    for merge in model.get("merges") or []:
        halves = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(halves, list) or len(halves) != 2 or not all(isinstance(half, str) for half in halves):
            raise QuantizeError(f"tokenizer.json holds the merge {shown(str(merge))}, which is no pair")
        pairs.append((halves[0], halves[1]))
    return pairs


def _sentencepiece_like(
    names: list[str], added: list[Any], pairs: list[tuple[str, str]], model: dict[str, Any]
) -> HfVocabulary:
    """SentencePiece BPE as tokenizer.json holds it: llama.cpp merges by score, here the rank of a first merge."""
    types = _types(names, added)
    for index, name in enumerate(names):
        if _BYTE_PIECE.fullmatch(name):
            types[index] = int(gguf.TokenType.BYTE)
        elif name == model.get("unk_token"):
            types[index] = int(gguf.TokenType.UNKNOWN)
    ranks: dict[str, int] = {}
    for left, right in pairs:
        ranks.setdefault(left + right, len(ranks))
    scores = [-float(ranks[name]) if name in ranks else -float(len(ranks) + 1) for name in names]
    tokens = [_plain(name, kind) for name, kind in zip(names, types, strict=True)]
    return HfVocabulary("llama", tokens, types, scores=scores)


def _wordpiece(names: list[str], added: list[Any], model: dict[str, Any]) -> HfVocabulary:
    """Pieces that begin a word get a space sign, those that continue one lose their `##`."""
    prefix = model.get("continuing_subword_prefix") or "##"
    types = _types(names, added)
    tokens = []
    for name, kind in zip(names, types, strict=True):
        if kind == gguf.TokenType.CONTROL:
            tokens.append(name)
        else:
            tokens.append(name.removeprefix(prefix) if name.startswith(prefix) else SPACE + name)
    return HfVocabulary("bert", tokens, types)


def _from_sentencepiece(path: Path) -> HfVocabulary:
    model = sentencepiece.read(path / "tokenizer.model")
    tokens = [piece.text for piece in model.pieces]
    types = [piece.kind for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    config = read_json(path / "tokenizer_config.json") or {}
    added = {int(index): one["content"] for index, one in (config.get("added_tokens_decoder") or {}).items()}
    special = {int(i) for i, one in (config.get("added_tokens_decoder") or {}).items() if one.get("special")}
    added |= {index: name for name, index in (read_json(path / "added_tokens.json") or {}).items()}
    for index, name in sorted(added.items()):
        if index > len(tokens):
            raise QuantizeError(f"the added token {shown(name)} has the id {index}, beyond the {len(tokens)} before it")
        is_control = index in special or _LOOKS_SPECIAL.fullmatch(name) is not None
        kind = int(gguf.TokenType.CONTROL if is_control else gguf.TokenType.USER_DEFINED)
        if index == len(tokens):
            tokens.append("")
            types.append(kind)
            scores.append(-1000.0)
        tokens[index] = _plain(name, kind)
        types[index] = int(gguf.TokenType.UNKNOWN) if types[index] == gguf.TokenType.UNKNOWN else kind
    return HfVocabulary("llama", tokens, types, scores=scores, add_space_prefix=model.add_dummy_prefix)
