"""Writes a trained demo to disk: the Hugging Face folder, and the GGUF file made from that folder."""

import json
import shutil
from collections.abc import Set
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo.chat import TEMPLATE_PATH
from demo.names import gguf_name
from demo.tokenizer import CONTROL, END, PAD, USER_DEFINED, tokenizer_config

NAME = "onecard demo"
WHAT = "A toy chat model trained by the onecard project on text that the project makes."


def save_hf(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """F16 safetensors with config, tokenizer and chat template, as `from_pretrained` expects them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = tokenizer_config(model.config.max_position_embeddings)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATE_PATH, folder / "chat_template.jinja")


def save_gguf(folder: Path, path: Path, *, name: str = NAME, what: str = WHAT) -> None:
    """The folder's model as GGUF: F16 matrices, F32 norms, tokenizer and chat template inside."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_basename(name.replace(" ", "-"))
    writer.add_description(what)
    _write_hyperparameters(writer, config)
    _write_tokenizer(writer, folder)
    for key, tensor in sorted(load_file(folder / "model.safetensors").items()):
        writer.add_tensor(gguf_name(key), gguf_tensor(key, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensor(name: str, tensor: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Norms as F32; q and k with each head's two halves interleaved, as llama.cpp's rope wants them."""
    if tensor.ndim == 1:
        return tensor.astype(np.float32)
    for part, n_heads in (("q_proj", config["num_attention_heads"]), ("k_proj", config["num_key_value_heads"])):
        if part in name:
            halves = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, tensor.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
    return tensor


def _write_hyperparameters(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_type("model")
    writer.add_size_label("1.8M")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = {**spec["model"]["vocab"], **{t["content"]: t["id"] for t in spec["added_tokens"]}}
    tokens = sorted(ids, key=ids.__getitem__)
    controls = {*CONTROL, *(token["content"] for token in spec["added_tokens"] if token["special"])}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(token, controls) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(ids[END])
    writer.add_eot_token_id(ids[END])
    writer.add_pad_token_id(ids[PAD])
    writer.add_bos_token_id(ids[PAD])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _token_type(token: str, controls: Set[str]) -> gguf.TokenType:
    if token in controls:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if token in USER_DEFINED else gguf.TokenType.NORMAL
