"""A small random-weight model of every architecture the converter knows, saved as transformers saves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.quantize import vocabularies as vocab

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Kind:
    """One model of the zoo."""

    config: type[Any]
    model: type[Any]
    settings: dict[str, Any]
    tokenizer: Callable[[], Tokenizer]
    bos: str | None = None
    pre: str = "default"
    eos: str = "</s>"


def _llama3() -> Tokenizer:
    return vocab.byte_level(
        vocab.LLAMA3_SPLIT, specials=("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), bos="<|begin_of_text|>"
    )


def _qwen() -> Tokenizer:
    return vocab.byte_level(
        vocab.QWEN2_SPLIT, specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>")
    )


def _gpt2() -> Tokenizer:
    return vocab.byte_level(None, specials=("<|endoftext|>",))


def _gemma() -> Tokenizer:
    return vocab.sentencepiece_bpe(prefix=False, bos="<bos>", specials=("<start_of_turn>", "<end_of_turn>"))


def _llama2() -> Tokenizer:
    return vocab.sentencepiece_bpe(prefix=True, bos="<s>")


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.01 * i for i in range(6)],
    "long_factor": [1.0 + 0.5 * i for i in range(6)],
    "partial_rotary_factor": 0.75,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
GELU = {"initializer_range": 0.07}
"""ggml's table of GELU steps by an F16: models that use it are compared with smaller steps in their layers."""
t = transformers

ZOO: dict[str, Kind] = {
    "llama2": Kind(t.LlamaConfig, t.LlamaForCausalLM, SMALL, _llama2, "<s>"),
    "llama3": Kind(
        t.LlamaConfig,
        t.LlamaForCausalLM,
        SMALL | {"rope_parameters": LLAMA3_ROPE, "head_dim": 32, "attention_bias": True, "mlp_bias": True},
        _llama3,
        "<|begin_of_text|>",
        "llama-bpe",
        "<|eot_id|>",
    ),
    "llama-linear": Kind(
        t.LlamaConfig,
        t.LlamaForCausalLM,
        SMALL | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        _llama2,
        "<s>",
    ),
    "mistral": Kind(t.MistralConfig, t.MistralForCausalLM, SMALL | {"sliding_window": None}, _llama2, "<s>"),
    "mistral-nemo": Kind(
        t.MistralConfig,
        t.MistralForCausalLM,
        SMALL | {"sliding_window": None, "head_dim": 32},
        lambda: vocab.byte_level(vocab.TEKKEN_SPLIT, specials=("<s>", "</s>", "[INST]", "[/INST]"), bos="<s>"),
        "<s>",
        "tiny_aya",
    ),
    "qwen2": Kind(t.Qwen2Config, t.Qwen2ForCausalLM, SMALL, _qwen, None, "qwen2", "<|im_end|>"),
    "qwen2-tied-yarn": Kind(
        t.Qwen2Config,
        t.Qwen2ForCausalLM,
        SMALL
        | {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
        _qwen,
        None,
        "qwen2",
        "<|im_end|>",
    ),
    "qwen3": Kind(t.Qwen3Config, t.Qwen3ForCausalLM, SMALL | {"head_dim": 32}, _qwen, None, "qwen2", "<|im_end|>"),
    "phi3": Kind(t.Phi3Config, t.Phi3ForCausalLM, SMALL | {"pad_token_id": 0}, _llama2, "<s>"),
    "phi4-mini": Kind(
        t.Phi3Config,
        t.Phi3ForCausalLM,
        SMALL
        | {
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "rope_parameters": LONG_ROPE,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 256,
        },
        _gpt2,
        None,
        "gpt-2",
        "<|endoftext|>",
    ),
    "gemma2": Kind(
        t.Gemma2Config,
        t.Gemma2ForCausalLM,
        SMALL | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 4} | GELU,
        _gemma,
        "<bos>",
        eos="<end_of_turn>",
    ),
    "gemma3": Kind(
        t.Gemma3TextConfig,
        t.Gemma3ForCausalLM,
        SMALL | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7} | GELU,
        _gemma,
        "<bos>",
        eos="<end_of_turn>",
    ),
    "gpt2": Kind(
        t.GPT2Config,
        t.GPT2LMHeadModel,
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512} | GELU,
        _gpt2,
        None,
        "gpt-2",
        "<|endoftext|>",
    ),
    "bert": Kind(
        t.BertConfig,
        t.BertModel,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
        vocab.wordpiece,
        "[CLS]",
        "default",
        "[SEP]",
    ),
}


def build(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """Save the model and its tokenizer; the weights are wide enough that logits spread over several units."""
    kind = ZOO[name]
    tokenizer = kind.tokenizer()
    torch.manual_seed(11)
    n_vocab = -(-tokenizer.get_vocab_size() // 32) * 32
    settings = (
        {"vocab_size": n_vocab, "initializer_range": 0.12, "bos_token_id": 1, "eos_token_id": 2} | kind.settings | more
    )
    config = kind.config(**settings)
    model = kind.model(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" in parameter_name or "wte" in parameter_name:
                parameter.mul_(1.5)
    model.to(dtype).save_pretrained(folder)
    vocab.save(
        tokenizer,
        folder,
        bos_token=kind.bos,
        eos_token=kind.eos,
        chat_template=TEMPLATE,
        tokenizer_class="PreTrainedTokenizerFast",
        **({"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"} if name == "bert" else {}),
    )
    if name == "bert":
        (folder / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": "1_Pooling"}]))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder
