"""Tokenizers shaped like real ones, trained on the corpus in a second: byte-level BPE, SentencePiece BPE, WordPiece."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.quantize.corpus import lines

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_TOKENS = 1500


def byte_level(split: str | None, *, specials: tuple[str, ...], bos: str | None = None) -> Tokenizer:
    """GPT-2's kind; `split` replaces GPT-2's own expression as Llama 3, Qwen and Mistral do."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split in (LLAMA3_SPLIT, TEKKEN_SPLIT)))
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines(2500), trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def sentencepiece_bpe(*, prefix: bool, bos: str, specials: tuple[str, ...] = ()) -> Tokenizer:
    """The tokenizer.json of Llama 2 and Mistral (`prefix`) or Gemma: BPE over spelled spaces with byte fallback.

    As with the real files there is a merge for every pair of pieces that makes a piece, ordered by the piece's rank.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=prefix)
    trained.train_from_iterator(lines(2500), trainers.BpeTrainer(vocab_size=N_TOKENS, show_progress=False))
    made = json.loads(trained.to_str())["model"]
    ranked = ["".join(merge) for merge in made["merges"]]
    letters = [name for name in made["vocab"] if name not in set(ranked)]
    names = ["<unk>", bos, "</s>", *(f"<0x{value:02X}>" for value in range(256)), *ranked, *letters]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in dict.fromkeys(ranked)
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", bos, "</s>")])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """The tokenizer.json of uncased BERT."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=N_TOKENS, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(lines(2500), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **config: object) -> None:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
