"""The measured model as a Hugging Face folder: the same random weights, shapes and tokenizer as the GGUF file's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench import model
from bench.model import OUT, SPECIALS, TEMPLATE, Shape
from demo.names import hf_name


def path(shape: Shape = Shape()) -> Path:  # noqa: B008 - it is frozen
    """The folder, made on the first call."""
    target = OUT / f"random-hf-{shape.n_layers}x{shape.n_embd}x{shape.n_vocab}"
    if not (target / "model.safetensors").exists():
        print(f"making {target.name} (once)", file=sys.stderr)
        OUT.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        part = OUT / "random-f16.part"
        model.write_f16(part, shape)
        _write(target, part, shape)
        part.unlink()
    return target


def _write(target: Path, source: Path, shape: Shape) -> None:
    reader = GGUFReader(source)
    target.mkdir(parents=True)
    tensors = {hf_name(t.name): np.array(t.data, dtype=np.float32) for t in reader.tensors}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_heads_kv,
        "max_position_embeddings": shape.n_ctx,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    }
    (target / "config.json").write_text(json.dumps(config))
    _write_tokenizer(target, reader)
    import torch
    from safetensors.torch import save_file as save_torch

    save_torch(
        {name: torch.from_numpy(value).to(torch.bfloat16).contiguous() for name, value in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )


def _write_tokenizer(target: Path, reader: GGUFReader) -> None:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    plain = {token: i for i, token in enumerate(tokens) if token not in SPECIALS}
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    assert len(plain) + len(SPECIALS) == len(tokens)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIALS[0], chat_template=TEMPLATE)
    fast.save_pretrained(target)
