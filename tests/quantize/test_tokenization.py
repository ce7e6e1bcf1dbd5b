"""llama.cpp tokenizes with the converted vocabulary as the Hugging Face tokenizer does, on 2200 multilingual lines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from quantize.errors import QuantizeError
from quantize.hf.convert import make_plan, write_plan
from quantize.hf.source import opened
from quantize.hf.tensor import Dtype
from tests.quantize import engine, vocabularies
from tests.quantize.corpus import lines
from tests.quantize.zoo import ZOO, build

pytestmark = pytest.mark.engine


def converted(folder: Path, pre: str | None = None) -> Path:
    with opened(folder) as source:
        plan = make_plan(source, Dtype.F16, pre=pre)
        target = folder.with_suffix(".gguf")
        write_plan(plan, target)
    return target


@pytest.mark.parametrize("name", ["llama3", "qwen2", "mistral-nemo", "gpt2", "llama2", "gemma2", "bert"])
def test_tokens_are_those_of_the_hugging_face_tokenizer(tmp_path: Path, name: str) -> None:
    folder = build(name, tmp_path / name)
    path = converted(folder)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus = lines(2200 if name != "bert" else 2900, seed=99)
    if name == "bert":  # llama.cpp does not take Hangul apart as BERT's normaliser does
        corpus = [line for line in corpus if not any("\uac00" <= sign <= "\ud7a3" for sign in line)]
    assert len(corpus) >= 2000
    expected = [batch.ids for batch in reference.encode_batch(corpus, add_special_tokens=False)]
    with engine.loaded(path, embeddings=name == "bert") as (model, _):
        found = [engine.tokenize(model, line) for line in corpus]
    wrong = [line for line, one, other in zip(corpus, expected, found, strict=True) if one != other]
    assert not wrong, f"{len(wrong)} of {len(corpus)}, the first {wrong[:3]}"


@pytest.mark.parametrize("name", list(ZOO))
def test_special_tokens_are_added_as_the_hugging_face_tokenizer_adds_them(tmp_path: Path, name: str) -> None:
    folder = build(name, tmp_path / name)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with engine.loaded(converted(folder), embeddings=name == "bert") as (model, _):
        assert engine.tokenize(model, "Hello world", special=True) == reference.encode("Hello world").ids


def test_tokenizer_that_splits_like_no_other_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = build("gpt2", tmp_path / "odd")
    vocabularies.save(vocabularies.byte_level(r"\p{L}{1,2}|\p{N}{2}|\s|.", specials=("<|endoftext|>",)), folder)
    with pytest.raises(QuantizeError, match=r"none of llama.cpp's pre-tokenizers; nearest is .* hint: --pre-tokenizer"):
        converted(folder)
    assert converted(folder, pre="gpt-2").is_file()
    with pytest.raises(QuantizeError, match="hint: qwen2"):
        converted(folder, pre="qwen-2")


def test_difference_that_llama_cpp_has_for_a_vocabulary_is_a_warning(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "bert")
    with opened(folder) as source:
        warnings = make_plan(source, Dtype.F16).warnings
    assert any("probe lines otherwise" in warning for warning in warnings)


def test_tokenizer_model_alone_serves_as_vocabulary(tmp_path: Path) -> None:
    folder = build("llama2", tmp_path / "spm")
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").write_bytes(sentencepiece_file(reference))
    shutil.move(folder / "tokenizer.json", tmp_path / "kept.json")
    corpus = lines(300, seed=5)
    with engine.loaded(converted(folder)) as (model, _):
        assert [engine.tokenize(model, line) for line in corpus] == [
            reference.encode(line, add_special_tokens=False).ids for line in corpus
        ]


def sentencepiece_file(reference: Tokenizer) -> bytes:
    """The protocol buffer that SentencePiece would have written for this vocabulary."""
    import json
    import struct

    vocab = json.loads(reference.to_str())["model"]["vocab"]

    def message(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(data)) + data

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    pieces = b""
    for name, index in sorted(vocab.items(), key=lambda item: item[1]):
        kind = 2 if index == 0 else 3 if index < 3 else 6 if index < 259 else 1
        score = struct.pack("<f", -float(index - 259) if index >= 259 else 0.0)
        pieces += message(1, message(1, name.encode()) + b"\x15" + score + b"\x18" + varint(kind))
    return pieces + message(2, b"\x18\x02") + message(3, b"\x18\x01")
