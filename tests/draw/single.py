"""Folders of diffusers written as one file, by the names of their first publishers, as ComfyUI has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from backends.diffusion.layer_names import first_name
from backends.diffusion.original_names import originals

Tensors = dict[str, torch.Tensor]
DENOISER = "model.diffusion_model."
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
VAE = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"conv_shortcut", "nin_shortcut"),
)


def weights(folder: Path, part: str) -> Tensors:
    """Of one network of a folder."""
    (file,) = (folder / part).glob("*.safetensors")
    return dict(load_file(file))


def unet(tensors: Tensors, layers_per_block: int) -> Tensors:
    """Blocks counted through."""
    named = {name.rpartition(".")[::2]: tensor for name, tensor in tensors.items()}
    found = {f"{first_name(layer, layers_per_block)}.{kind}": tensor for (layer, kind), tensor in named.items()}
    assert len(found) == len(tensors)
    return {DENOISER + name: tensor for name, tensor in found.items()}


def vae(tensors: Tensors, prefix: str = "first_stage_model.") -> Tensors:
    """Attention as convolutions of 1 x 1, blocks on the way up counted from the last."""
    n_up = 1 + max(int(found[1]) for name in tensors if (found := re.search(r"up_blocks\.(\d)", name)))
    made = {}
    for name, tensor in tensors.items():
        for pattern, theirs in VAE:
            name = re.sub(pattern, theirs, name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda up: f"up.{n_up - 1 - int(up[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda up: f"up.{n_up - 1 - int(up[1])}.upsample", name)
        is_square = ".attn_1." in name and tensor.dim() == 2
        made[prefix + name] = tensor[..., None, None] if is_square else tensor
    return made


def text(tensors: Tensors, prefix: str) -> Tensors:
    """As transformers called them before it left out `text_model.`, with what older files have besides."""
    named = {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in tensors.items()}
    positions = torch.arange(32)[None]
    return {
        prefix + name: tensor for name, tensor in {**named, "text_model.embeddings.position_ids": positions}.items()
    }


def open_clip(tensors: Tensors, prefix: str) -> Tensors:
    """Query, key and value in one matrix."""
    found, rows = dict[str, torch.Tensor](), dict[str, Tensors]()
    for full, tensor in tensors.items():
        name = full.removeprefix("text_model.")
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif layer is None:
            found[OPEN_CLIP_ENDS[name]] = tensor
        elif layer[2][-6:] in ("q_proj", "k_proj", "v_proj"):
            rows.setdefault(f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}", {})[layer[2][-6]] = tensor
        else:
            found[f"transformer.resblocks.{layer[1]}.{OPEN_CLIP[layer[2]]}.{layer[3]}"] = tensor
    found |= {name: torch.cat([part[one] for one in "qkv"]) for name, part in rows.items()}
    return {prefix + name: tensor for name, tensor in found.items()} | {f"{prefix}logit_scale": torch.ones(())}


def joint(tensors: Tensors, prefix: str = DENOISER) -> Tensors:
    """Of a transformer: rows behind each other, and some halves the other way round."""
    layers = {name.rpartition(".")[0] for name in tensors} - {"pos_embed"}
    n_blocks = 1 + max(int(found[1]) for name in layers if (found := re.match(r"transformer_blocks\.(\d+)", name)))
    turned = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
    if "pos_embed.proj" in layers:
        last = f"{n_blocks - 1}.context_block.adaLN_modulation.1"
        turned[f"joint_blocks.{last}"] = f"transformer_blocks.{n_blocks - 1}.norm1_context.linear"
    made: Tensors = {"pos_embed": tensors["pos_embed.pos_embed"]} if "pos_embed.pos_embed" in tensors else {}
    for theirs, ours in {**originals(layers), **{one: (name,) for one, name in turned.items()}}.items():
        for kind in ("weight", "bias"):
            if f"{ours[0]}.{kind}" in tensors:
                whole = torch.cat([tensors[f"{name}.{kind}"] for name in ours])
                if theirs in turned:
                    whole = torch.cat([*reversed(whole.chunk(2))])
                ending = "scale" if theirs.endswith(("query_norm", "key_norm")) else kind
                made[f"{theirs}.{ending}"] = whole
    return {prefix + name: tensor for name, tensor in made.items()}


def sd(folder: Path, file: Path) -> Path:
    """Stable Diffusion 1."""
    parts = {**unet(weights(folder, "unet"), 1), **vae(weights(folder, "vae"))}
    return saved(file, {**parts, **text(weights(folder, "text_encoder"), "cond_stage_model.transformer.")})


def xl(folder: Path, file: Path) -> Path:
    """XL, whose second text encoder is OpenCLIP's."""
    parts = {**unet(weights(folder, "unet"), 1), **vae(weights(folder, "vae"))}
    parts |= text(weights(folder, "text_encoder"), "conditioner.embedders.0.transformer.")
    return saved(file, {**parts, **open_clip(weights(folder, "text_encoder_2"), "conditioner.embedders.1.model.")})


def sd3(folder: Path, file: Path) -> Path:
    """Stable Diffusion 3 with all of its encoders, of which the first has no projection, as it was published."""
    parts = {**joint(weights(folder, "transformer")), **vae(weights(folder, "vae"))}
    first = {name: one for name, one in weights(folder, "text_encoder").items() if name != "text_projection.weight"}
    parts |= text(first, "text_encoders.clip_l.transformer.")
    parts |= text(weights(folder, "text_encoder_2"), "text_encoders.clip_g.transformer.")
    t5 = weights(folder, "text_encoder_3")
    return saved(file, {**parts, **{f"text_encoders.t5xxl.transformer.{name}": one for name, one in t5.items()}})


def flux(folder: Path, file: Path) -> Path:
    """Flux with all of its networks, as ComfyUI's own publishers pack it."""
    parts = {**joint(weights(folder, "transformer")), **vae(weights(folder, "vae"), "vae.")}
    parts |= text(weights(folder, "text_encoder"), "text_encoders.clip_l.transformer.")
    t5 = weights(folder, "text_encoder_2")
    return saved(file, {**parts, **{f"text_encoders.t5xxl.transformer.{name}": one for name, one in t5.items()}})


WRITERS: dict[str, Callable[[Path, Path], Path]] = {"sd": sd, "xl": xl, "sd3": sd3, "flux": flux}


def saved(file: Path, tensors: Mapping[str, Any]) -> Path:
    """With a tensor that nothing loads, as training leaves them."""
    save_file({**{name: one.contiguous().clone() for name, one in tensors.items()}, "betas": torch.ones(4)}, file)
    return file
