"""The Hugging Face folder of the model that sees, made of its two GGUF files. `python -m demo.vision.folder DIR`.

The same numbers are not stored twice: both forms are F16, and nothing is rounded on the way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from demo.names import gguf_name
from demo.vision import GGUF_PATH, HF_PATH, PROJECTOR_PATH
from demo.vision.export import language_name, projector_name, save_folder
from demo.vision.train import Recipe, new_model, new_tokenizer

Tensors = dict[str, NDArray[Any]]


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=HF_PATH)
    write(parser.parse_args().folder)


def write(folder: Path) -> None:
    """Config, tokenizer, template and weights, as `transformers` reads them."""
    tokenizer = new_tokenizer()
    model = new_model(tokenizer, Recipe.seed)
    language, eyes = tensors(GGUF_PATH), tensors(PROJECTOR_PATH)
    text = model.config.text_config
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    weights = dict(model.state_dict())
    for name in weights:
        if (stored := projector_name(name)) is not None:
            weights[name] = torch.from_numpy(eyes[stored].reshape(weights[name].shape).copy())
        elif (own := language_name(name)) is not None:
            n_heads = next((n for part, n in heads.items() if part in own), 0)
            weights[name] = torch.from_numpy(in_halves(language[gguf_name(own)], n_heads))
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    model.load_state_dict(weights)
    save_folder(model, tokenizer, folder)


def tensors(path: Path) -> Tensors:
    """By name, as numpy has them."""
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def in_halves(tensor: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of each head back from llama.cpp's neighbouring pairs to two halves; others as they are."""
    if not n_heads:
        return tensor.copy()
    pairs = tensor.reshape(n_heads, tensor.shape[0] // n_heads // 2, 2, tensor.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(tensor.shape))


if __name__ == "__main__":
    main()
