"""Converted files compute what transformers computes, for a random model of every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from backends.gguf import header
from quantize.hf.convert import make_plan, write_plan
from quantize.hf.source import opened
from quantize.hf.tensor import Dtype
from tests.quantize import engine
from tests.quantize.zoo import TEMPLATE, ZOO, build

pytestmark = pytest.mark.engine
DECODERS = [name for name in ZOO if name != "bert"]
SHORT_CONTEXT = {"phi4-mini": 256}
"""llama.cpp takes the long factors by the context's size, transformers by the text's: here both take the short ones."""


class GgmlGelu(torch.nn.Module):
    """GELU as ggml's CPU code has it: a table over F16. It is the whole difference between the two for such models."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, table))


def reference_of(name: str, folder: Path) -> torch.nn.Module:
    reference = ZOO[name].model.from_pretrained(folder, attn_implementation="eager").eval()
    for module in reference.modules():
        for attribute in ("act", "act_fn"):
            if "gelu" in type(getattr(module, attribute, None)).__name__.lower():
                setattr(module, attribute, GgmlGelu())
    return reference


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(name, tmp_path_factory.mktemp(name) / name) for name in ZOO}


def convert(folder: Path, dtype: Dtype = Dtype.F32) -> Path:
    target = folder.with_name(f"{folder.name}-{dtype.value}.gguf")
    with opened(folder) as source:
        plan = make_plan(source, dtype)
        write_plan(plan, target)
    return target


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_transformers(models: dict[str, Path], name: str) -> None:
    path = convert(models[name])
    reference: Any = reference_of(name, models[name])
    n_vocab = reference.config.vocab_size
    tokens = np.random.default_rng(3).integers(3, 900, 60).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    with engine.loaded(path, n_ctx=SHORT_CONTEXT.get(name, 512)) as (model, context):
        found = engine.logits(model, context, tokens)
    assert found.shape == (60, n_vocab)
    assert expected.std() > 0.5, "the model says nothing; the comparison would prove nothing"
    assert np.abs(found - expected).max() < 1e-3


def test_long_context_factors_are_those_of_transformers(models: dict[str, Path]) -> None:
    path = convert(models["phi4-mini"])
    reference = reference_of("phi4-mini", models["phi4-mini"])
    tokens = np.random.default_rng(4).integers(3, 900, 300).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    with engine.loaded(path) as (model, context):
        found = engine.logits(model, context, tokens)
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_text_is_that_of_transformers(models: dict[str, Path], name: str) -> None:
    path = convert(models[name], Dtype.F16)
    reference = ZOO[name].model.from_pretrained(models[name]).eval()
    tokens = np.random.default_rng(5).integers(3, 900, 20).tolist()
    with torch.no_grad():
        made = reference.generate(
            torch.tensor([tokens]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()
    with engine.loaded(path, n_ctx=SHORT_CONTEXT.get(name, 512)) as (model, context):
        found = list(tokens)
        for _ in range(12):
            found.append(int(engine.logits(model, context, found)[-1].argmax()))
    assert found == made


def test_encoder_gives_the_vectors_of_transformers(models: dict[str, Path]) -> None:
    path = convert(models["bert"])
    reference = transformers.BertModel.from_pretrained(models["bert"]).eval()
    tokens = [2, *np.random.default_rng(6).integers(5, 900, 30).tolist(), 3]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy()
    with engine.loaded(path, embeddings=True) as (model, context):
        found = engine.embedding(model, context, tokens)
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("name", list(ZOO))
def test_file_says_what_the_folder_says(models: dict[str, Path], name: str) -> None:
    info = header.read(convert(models[name], Dtype.F16))
    kind = ZOO[name]
    assert info.metadata["tokenizer.ggml.pre"] == kind.pre
    assert info.metadata["tokenizer.ggml.add_bos_token"] is (kind.bos is not None)
    assert info.metadata["tokenizer.chat_template"] == TEMPLATE
    assert info.metadata["general.file_type"] == 1
    assert {tensor.type_name for tensor in info.tensors} == {"F16", "F32"}
    assert ("output.weight" in {tensor.name for tensor in info.tensors}) is (
        name not in ("bert", "gpt2", "gemma2", "gemma3", "qwen2-tied-yarn", "phi4-mini")
    )


def test_fill_in_the_middle_tokens_are_named(models: dict[str, Path]) -> None:
    info = header.read(convert(models["qwen2"]))
    assert isinstance(info.metadata["tokenizer.ggml.fim_pre_token_id"], int)
    assert isinstance(info.metadata["tokenizer.ggml.fim_suf_token_id"], int)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_every_cast_is_torchs(tmp_path: Path, stored: torch.dtype, dtype: Dtype) -> None:
    folder = build("llama2", tmp_path / "m", dtype=stored)
    import gguf
    from safetensors.torch import load_file

    original = load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    reader = gguf.GGUFReader(convert(folder, dtype))
    found = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    target = {Dtype.F32: torch.float32, Dtype.F16: torch.float16, Dtype.BF16: torch.bfloat16}[dtype]
    assert found.data.tobytes() == original.to(torch.float32).to(target).view(torch.uint8).numpy().tobytes()
