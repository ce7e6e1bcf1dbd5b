"""What llama.cpp and transformers call the tensors of a Llama."""

from __future__ import annotations

_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OF_THE_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GGUF = {theirs: ours for ours, theirs in (_OF_A_LAYER | _OF_THE_MODEL).items()}


def hf_name(name: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` for `blk.0.ffn_up.weight`."""
    *block, part, kind = name.split(".")
    return f"model.layers.{block[1]}.{_OF_A_LAYER[part]}.{kind}" if block else f"{_OF_THE_MODEL[part]}.{kind}"


def gguf_name(name: str) -> str:
    """`blk.0.ffn_up.weight` for `model.layers.0.mlp.up_proj.weight`."""
    path, _, kind = name.rpartition(".")
    if not path.startswith("model.layers."):
        return f"{_GGUF[path]}.{kind}"
    _, _, layer, part = path.split(".", 3)
    return f"blk.{layer}.{_GGUF[part]}.{kind}"
