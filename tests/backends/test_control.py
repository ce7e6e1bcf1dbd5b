"""Plain text holds no control token, whatever kind of vocabulary a tokenizer has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backends.bnb.vocabulary import FolderVocabulary
from backends.engine import JobError
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from tests.models import canary_p

SPECIALS = ("<s>", "</s>", "<|im_end|>")
LETTERS = "abcdehimnrstuDELSTUPX<>/|_ \u2581\uff5c[]"


def byte_level() -> Tokenizer:
    """Turns are marked by tokens that are not said to be control tokens, as in DeepSeek's and Dolphin's folders."""
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name in ("<\uff5cUser\uff5c>", "<|im_end|>", "<|turn>"):
        tokenizer.add_tokens([AddedToken(name, special=False, normalized=False)])
    return tokenizer


def unigram() -> Tokenizer:
    """Its pieces are looked for among all tokens, control tokens too."""
    pieces = [("<unk>", 0.0), *((name, 0.0) for name in SPECIALS), *((letter, -5.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", *SPECIALS)])
    return tokenizer


def words() -> Tokenizer:
    """A control token that is one of the vocabulary's words."""
    names = ["<unk>", *SPECIALS, "a", "b", "<", "/s>"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", *SPECIALS)])
    return tokenizer


def folding() -> Tokenizer:
    """Makes ASCII of look-alikes and small letters of capitals before it looks for its marks."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=False, normalized=True)])
    return tokenizer


FOLDERS = {
    "byte_level": (byte_level, ["a<|im_end|>b", "<\uff5cUser\uff5c>", "<|turn>", "<|turn><|im_end|>" * 3]),
    "unigram": (unigram, ["a</s>b", "<s>", "<|im_end|></s>", "</s></s>"]),
    "words": (words, ["a </s> b", "</s>"]),
    "folding": (folding, ["\uff1c|im_start|\uff1e", "<\uff5cIM_START\uff5c>", "<|im_end|>"]),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folders_tokenizer_makes_no_control_token_of_plain_text(kind: str) -> None:
    make, texts = FOLDERS[kind]
    tokenizer = make()
    vocabulary = folder(tokenizer)
    controls = {control.token for control in vocabulary.controls()} - {tokenizer.token_to_id("<unk>")}
    for text in texts:
        raw = set(vocabulary.tokenize(text, parse_special=True))
        plain = vocabulary.tokenize(text, parse_special=False)
        assert raw & controls, text
        assert not set(plain) & controls, text
        assert plain, text
    spelled = b"".join(map(vocabulary.piece, vocabulary.tokenize(texts[0], parse_special=False)))
    assert kind == "folding" or spelled.decode() == texts[0].replace(" ", "" if kind == "words" else " ")


@pytest.mark.parametrize("kind", FOLDERS)
def test_ordinary_text_keeps_the_tokens_it_has(kind: str) -> None:
    tokenizer = FOLDERS[kind][0]()
    vocabulary = folder(tokenizer)
    for text in ("ab", "a b \u2603", "< /s>", "<think>a</think>"):
        assert vocabulary.tokenize(text, parse_special=False) == tokenizer.encode(text, add_special_tokens=False).ids


def test_an_expression_that_gives_up_is_told() -> None:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    with pytest.raises(JobError, match="takes too long"):
        folder(tokenizer).tokenize("x" * 60, parse_special=False)


def test_tokens_that_the_model_has_not_are_told() -> None:
    source: Any = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    with pytest.raises(JobError, match="makes token 258 of this text, and the model has 200"):
        FolderVocabulary(source, n_vocab=200, ends=set()).tokenize("a<|turn>", parse_special=True)


def folder(tokenizer: Tokenizer) -> FolderVocabulary:
    source: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()))
    return FolderVocabulary(source, n_vocab=tokenizer.get_vocab_size(), ends=set())


MERGING = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "<", "/", "s", ">", "a"]
MERGING += ["</", "s>", "<s", "<think>", "<|turn>"]
KINDS = [2, 3, 3, *[6] * 256, *[1] * 9, 4, 4]
"""GGUF's numbers: unknown, control, byte, normal, found in any text."""


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A SentencePiece vocabulary as Llama 2's, in which ordinary pieces merge into control tokens."""
    filler = canary_p.N_VOCAB - len(MERGING)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*MERGING, *(f"filler{i}" for i in range(filler))],
        "tokenizer.ggml.token_type": [*KINDS, *[1] * filler],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 2,
    }
    path = canary_p.build(tmp_path_factory.mktemp("merging") / "model.gguf", metadata=metadata)
    log = LibraryLog()
    log.install()
    model = Model(path, gpu_layers=0, log=log)
    yield model
    model.close()


@pytest.mark.parametrize("text", ["</s>", "a</s>a<s>", "<s></s>", "a<|turn>", "<" * 40 + "s>"])
def test_llama_cpp_makes_no_control_token_of_plain_text(merging: Model, text: str) -> None:
    controls = {control.token for control in merging.controls()}
    assert set(merging.tokenize(text, parse_special=True)) & controls
    assert not set(tokens := merging.tokenize(text, parse_special=False)) & controls
    assert b"".join(map(merging.piece, tokens)).decode().strip() == text


def test_what_is_found_in_any_text_and_no_control_token_stays_one_token(merging: Model) -> None:
    assert MERGING.index("<think>") in merging.tokenize("a<think>a", parse_special=False)
