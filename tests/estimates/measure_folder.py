"""Loads a folder with transformers and bitsandbytes in each way asked for; prints the bytes of its weights, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def state_bytes(state: object) -> int:
    """What a 4-bit weight keeps beside its packed values."""
    held = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    nested = vars(state).get("state2")
    return sum(t.nbytes for t in held) + (state_bytes(nested) if nested is not None else 0)


def weight_bytes(folder: str, options: dict[str, Any]) -> int:
    config = BitsAndBytesConfig(**options) if options else None
    place: Any = {"": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype="auto", device_map=place)
    n_bytes = 0
    for parameter in model.parameters():
        n_bytes += parameter.nbytes
        if (state := getattr(parameter, "quant_state", None)) is not None:
            n_bytes += state_bytes(state)
        if (scales := getattr(parameter, "SCB", None)) is not None:
            n_bytes += scales.nbytes
    return n_bytes


if __name__ == "__main__":
    print(json.dumps([weight_bytes(sys.argv[1], options) for options in json.loads(sys.argv[2])]))
