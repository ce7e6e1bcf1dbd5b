"""The weights that training starts from: random, but for heads that begin as a copying circuit.

The demo is too short a training for such a circuit to appear by itself: from plain random weights 3 M tokens teach
every fact, yet not to repeat the second of two words. So head 0 of layer 0 begins by looking at the token before, and
head 0 of layers 1 and 2 by looking for "the token before was the one I am at" (an induction head, Olsson et al.,
arXiv 2209.11895), and what layers 1 to 3 attend to begins as a vote for that token. All of it is trained on.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

_MATRIX_STD = 0.07  # about 1 / sqrt(hidden)
_EMBEDDING_STD = 0.3  # large beside what layers add, so that late layers still see which token is where
_OUTPUT_NORM = 0.07  # and small logits all the same, though the output shares the embedding
_SHARPNESS = 7.0  # by how much the wanted offset leads its neighbours, before softmax


def set_starting_weights(model: LlamaForCausalLM, seed: int) -> None:
    """Overwrite all weights of a fresh 4-layer model."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, _MATRIX_STD)
            layer.self_attn.o_proj.weight.mul_(0.3)
            layer.mlp.down_proj.weight.mul_(0.3)
        embedding = model.model.embed_tokens.weight.normal_(0.0, _EMBEDDING_STD)
        embedding[:, 0] = 3 * _EMBEDDING_STD  # the one number all tokens share: attention by position reads it
        model.model.norm.weight.fill_(_OUTPUT_NORM)
        _look_back(model)
        _match_and_copy(model)


def _look_back(model: LlamaForCausalLM) -> None:
    """Layer 0: head 0 attends to the token before, head 1 to the one before that."""
    width, attention = model.config.head_dim, model.model.layers[0].self_attn
    angles = model.model.rotary_emb.inv_freq
    shared = 3 / (1 + 9 / model.config.hidden_size) ** 0.5  # the shared number after the layer's norm
    fast = angles > 0.05
    gap = (1 - torch.cos(angles))[fast].sum()
    strength = fast * (_SHARPNESS * width**0.5 / gap) ** 0.5 / shared
    attention.k_proj.weight[:width] *= 0.1
    attention.k_proj.weight[:width, 0] = torch.cat([strength, torch.zeros_like(strength)])
    for head, offset in ((0, 1), (1, 2)):
        query: Tensor = attention.q_proj.weight[head * width : (head + 1) * width]
        query *= 0.1
        query[:, 0] = torch.cat([strength * torch.cos(offset * angles), -strength * torch.sin(offset * angles)])


def _match_and_copy(model: LlamaForCausalLM) -> None:
    """Layers 1 and 2: head 0 matches this token with others' previous one; layers 1 to 3: outputs undo values."""
    width, n_heads = model.config.head_dim, model.config.num_attention_heads
    first, *later = (layer.self_attn for layer in model.model.layers)
    token_read, previous_written = first.v_proj.weight[:width], first.o_proj.weight[:, :width].T
    for attention in later[:2]:
        attention.q_proj.weight[:width] = token_read / token_read.std() * 0.12
        attention.k_proj.weight[:width] = previous_written / previous_written.std() * 0.12
    for attention in later:
        for head in range(n_heads):
            at = head * model.config.num_key_value_heads // n_heads * width
            values = attention.v_proj.weight[at : at + width]
            attention.o_proj.weight[:, head * width : (head + 1) * width] = 0.5 * values.T
