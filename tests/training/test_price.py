"""What a job takes, from headers alone: how the sums move with a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import demo
from backends.bnb.header import FolderInfo, read
from backends.files.tensors import StoredTensor
from backends.messages.training import Recipe
from backends.training.price import price

WIDE, HIDDEN, VOCAB, LAYERS = 1408, 512, 8000, 4


def llama() -> FolderInfo:
    """A random Llama of 21 M parameters in float32."""
    shapes = {"embed_tokens": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    for i in range(LAYERS):
        at = f"layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (HIDDEN, WIDE), f"{at}.input_layernorm": (HIDDEN,)}
    found = [StoredTensor(f"model.{name}.weight", shape, "F32", 0) for name, shape in shapes.items()]
    config = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
              "num_key_value_heads": 8, "vocab_size": VOCAB}  # fmt: skip
    head = StoredTensor("lm_head.weight", (VOCAB, HIDDEN), "F32", 0)
    return FolderInfo("llama", config, {}, stored_quantised=False, tensors=(*found, head), file_bytes=0)


def recipe(**fields: Any) -> Recipe:
    told: dict[str, Any] = {"micro_batch": 4, "max_length": 256, "gradient_checkpointing": False, **fields}
    return Recipe("base", "job", "data", "text", **told)


def test_what_learns_is_counted_by_its_method():
    of = {method: price(llama(), recipe(method=method, rank=4)) for method in ("lora", "full")}
    n_all = sum(tensor.n_elements for tensor in llama().tensors)
    assert of["full"].trainable == n_all
    assert of["full"].optimiser == 8 * n_all
    assert of["lora"].trainable == LAYERS * 4 * (4 * 2 * HIDDEN + 3 * (HIDDEN + WIDE))
    assert of["lora"].adapters == 4 * of["lora"].trainable


def test_gradients_of_earlier_passes_stay():
    once, twice = (price(llama(), recipe(method="full", accumulation=n)) for n in (1, 2))
    assert once.gradients == 0  # they come as the activations go
    assert twice.gradients == 4 * twice.trainable
    saved = price(llama(), recipe(method="full", gradient_checkpointing=True, micro_batch=1, max_length=8))
    assert 0 < saved.gradients < 4 * saved.trainable  # few activations, so it is fullest when those come to an end
    assert saved.logits == 0


def test_checkpointing_and_four_bits_take_less():
    plain, saved = (price(llama(), recipe(gradient_checkpointing=on)) for on in (False, True))
    assert saved.activations < 0.5 * plain.activations
    packed = price(llama(), recipe(method="qlora", quantization="nf4"))
    assert packed.weights < 0.55 * plain.weights


def test_a_card_has_host_memory_beside_it():
    demos = read(Path(demo.HF_PATH))
    on_card = price(demos, recipe(device="cuda"), text_bytes=3000)
    assert on_card.host_bytes == on_card.host_runtime + on_card.optimiser + 5000
    assert price(demos, recipe()).host_bytes == 0
