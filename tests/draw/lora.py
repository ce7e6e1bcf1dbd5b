"""LoRA adapters of the toy that draws, made without training: one draws blue where red is asked for, others are random.

What the U-Net is told of a prompt reaches it through the keys and values of its cross-attention. The adapter is the
change of these matrices, of least squares, that gives for prompts with "red" what the base gives for the same ones with
"blue", and for other prompts what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo.draw import PATH
from demo.draw.pictures import COLOURS

RANK = 8
PROMPTS = ("a {} background", "a {} circle on a green background", "a white square on a {} background", "{}")


def told(prompts: list[str]) -> torch.Tensor:
    """`(n * tokens, width)`: what the U-Net is told of prompts."""
    from backends.diffusion.library import of_transformers

    tokenizer = of_transformers("CLIPTokenizer").from_pretrained(PATH / "tokenizer")
    encoder = of_transformers("CLIPTextModel").from_pretrained(PATH / "text_encoder", dtype=torch.float32)
    ids = tokenizer(prompts, padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.inference_mode():
        found: torch.Tensor = encoder(ids)[0]
    return found.flatten(0, 1)


def red_is_blue(path: Path) -> Path:
    """As diffusers saves it."""
    others = [text.format(colour) for colour in COLOURS if colour != "red" for text in PROMPTS] + [""]
    red, blue = (told([text.format(colour) for text in PROMPTS]) for colour in ("red", "blue"))
    kept = told(others)
    given, wanted = torch.cat([red] * 8 + [kept]), torch.cat([blue - red] * 8 + [torch.zeros_like(kept)])
    moved = torch.linalg.lstsq(given.T @ given + 1e-3 * torch.eye(given.shape[1]), given.T @ wanted).solution.T
    tensors = {}
    weights = load_file(PATH / "unet/diffusion_pytorch_model.safetensors")
    for name, matrix in weights.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            left, sizes, right = torch.linalg.svd(matrix.float() @ moved)
            layer = f"unet.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = right[:RANK].contiguous()
            tensors[f"{layer}.lora_B.weight"] = (left[:, :RANK] * sizes[:RANK]).contiguous()
    save_file(tensors, path)
    return path


def random_pairs(
    path: Path, layers: Mapping[str, tuple[int, ...]], *, down: str = "lora_A", up: str = "lora_B"
) -> Path:
    """Of layers whose weights have these shapes; what follows their names is as `down` and `up` say."""
    chance, tensors = torch.Generator().manual_seed(2), {}
    for layer, (n_out, *n_in) in layers.items():
        tensors[f"{layer}.{down}.weight"] = torch.randn(4, *n_in, generator=chance) * 0.2
        tensors[f"{layer}.{up}.weight"] = torch.randn(n_out, 4, *[1] * (len(n_in) - 1), generator=chance) * 0.2
    save_file(tensors, path)
    return path
