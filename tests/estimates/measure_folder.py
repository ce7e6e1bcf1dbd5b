"""Loads a model folder with transformers and bitsandbytes and prints the bytes of its weights, as a child of a test."""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

folder, options = sys.argv[1], json.loads(sys.argv[2])
config = BitsAndBytesConfig(**options) if options else None
model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype="auto", device_map={"": "cpu"})


def state_bytes(state: object) -> int:
    """What a 4-bit weight keeps beside its packed values."""
    held = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    nested = vars(state).get("state2")
    return sum(t.nbytes for t in held) + (state_bytes(nested) if nested is not None else 0)


n_bytes = 0
for parameter in model.parameters():
    n_bytes += parameter.nbytes
    if (state := getattr(parameter, "quant_state", None)) is not None:
        n_bytes += state_bytes(state)
    if (scales := getattr(parameter, "SCB", None)) is not None:
        n_bytes += scales.nbytes
print(n_bytes)
