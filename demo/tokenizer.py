"""The demo's tokenizer: byte-level BPE in GPT-2's manner, trained on the demo's own text."""

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
CONTROL: tuple[str, ...] = (PAD, START, END)
USER_DEFINED: tuple[str, ...] = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> Tokenizer:
    """A tokenizer of exactly `n_vocab` entries: bytes, merges, then control and user-defined tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - len(CONTROL) - len(USER_DEFINED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in USER_DEFINED])
    if tokenizer.get_vocab_size() != n_vocab:
        raise ValueError(f"vocabulary has {tokenizer.get_vocab_size()} entries, {n_vocab} wanted: too little text")
    return tokenizer


def tokenizer_config(max_tokens: int) -> dict[str, Any]:
    """What `tokenizer_config.json` says beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "eos_token": END,
        "pad_token": PAD,
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
