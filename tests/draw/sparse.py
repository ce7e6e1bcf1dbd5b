"""Folders of diffusers as large as real models, of which only headers are written: the rest is holes without disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"d_model": 4096, "d_ff": 10_240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32_128}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3_MEDIUM: dict[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
FLUX_DEV: dict[str, Any] = {"guidance_embeds": True}


def written(folder: Path, network: Any, stem: str) -> None:
    """Its configuration, and the header of its weights in 16 bits."""
    folder.mkdir(parents=True)
    network.config.save_pretrained(folder) if stem == "model" else network.save_config(folder)
    header_of(folder / f"{stem}.safetensors", network.state_dict())


def header_of(file: Path, tensors: Mapping[str, Any]) -> Path:
    """A file of these tensors in 16 bits, of which only the header is written."""
    header, start = {}, 0
    for name, tensor in tensors.items():
        end = start + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(file, 8 + len(raw) + start)
    return file


def build(folder: Path, pipeline: str, denoiser: dict[str, Any]) -> Path:
    """A folder of this pipeline, in the sizes that its publishers use."""
    import diffusers
    import torch
    import transformers

    from backends.diffusion.families import ENCODER_CLASSES, FAMILIES

    family = FAMILIES[pipeline]
    with torch.device("meta"):
        written(
            folder / family.denoiser, getattr(diffusers, family.denoiser_class)(**denoiser), "diffusion_pytorch_model"
        )
        written(folder / "vae", _vae(is_flow=family.flow), "diffusion_pytorch_model")
        for name, kind in family.encoders.items():
            sizes = T5_XXL if kind == "t5" else CLIP_G if name == "text_encoder_2" else CLIP_L
            config = transformers.T5Config(feed_forward_proj="gated-gelu", **sizes) if kind == "t5" else (
                transformers.CLIPTextConfig(vocab_size=49_408, projection_dim=sizes["hidden_size"], **sizes)
            )  # fmt: skip
            written(folder / name, getattr(transformers, ENCODER_CLASSES[kind])(config), "model")
            tokenizer = folder / name.replace("text_encoder", "tokenizer")
            tokenizer.mkdir()
            (tokenizer / "tokenizer.json").write_text("{}")
    scheduler = "FlowMatchEulerDiscreteScheduler" if family.flow else "EulerDiscreteScheduler"
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": scheduler}))
    named = {name: ["transformers", ENCODER_CLASSES[kind]] for name, kind in family.encoders.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **named}))
    return folder


def _vae(*, is_flow: bool) -> Any:
    from diffusers import AutoencoderKL

    sides = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    channels = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False} if is_flow else {}
    return AutoencoderKL(
        block_out_channels=[128, 256, 512, 512], layers_per_block=2, force_upcast=True, **sides, **channels
    )
