"""What publishers call the tensors of autoencoders and text encoders, and what diffusers and transformers do. Pure.

Text encoders come in transformers' own names or in OpenCLIP's, where query, key and value are one matrix.
diffusers' `loaders.single_file_utils`: `convert_ldm_vae_checkpoint`, `convert_open_clip_checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

Named = tuple[str, ...]
"""diffusers' names of the tensors that lie behind each other in the rows of one; none where it is not loaded."""
PROJECTION: Final = "text_projection"
_IGNORED: Final = ("position_ids", "logit_scale", "embed_tokens.weight")
_KINDS: Final = (".weight", ".bias")
"""Files in 8 bits have numbers beside them."""
_MODEL: Final = "text_model."
_VAE: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(encoder|decoder)\.mid\.block_1\.(.+)", r"\1.mid_block.resnets.0.\2"),
        (r"(encoder|decoder)\.mid\.block_2\.(.+)", r"\1.mid_block.resnets.1.\2"),
        (r"(encoder|decoder)\.mid\.attn_1\.norm\.(.+)", r"\1.mid_block.attentions.0.group_norm.\2"),
        (r"(encoder|decoder)\.mid\.attn_1\.(q|k|v)\.(.+)", r"\1.mid_block.attentions.0.to_\2.\3"),
        (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(.+)", r"\1.mid_block.attentions.0.to_out.0.\2"),
        (r"(encoder|decoder)\.norm_out\.(.+)", r"\1.conv_norm_out.\2"),
        (r"encoder\.down\.(\d{1,3})\.block\.(\d{1,3})\.(.+)", r"encoder.down_blocks.\1.resnets.\2.\3"),
        (r"encoder\.down\.(\d{1,3})\.downsample\.(.+)", r"encoder.down_blocks.\1.downsamplers.0.\2"),
        (r"decoder\.up\.(\d{1,3})\.block\.(\d{1,3})\.(.+)", r"decoder.up_blocks.\1.resnets.\2.\3"),
        (r"decoder\.up\.(\d{1,3})\.upsample\.(.+)", r"decoder.up_blocks.\1.upsamplers.0.\2"),
        (r"((?:encoder|decoder)\.conv_(?:in|out)\..+|(?:post_)?quant_conv\..+)", r"\1"),
    )
)
_UP: Final = re.compile(r"(decoder\.up_blocks\.)(\d{1,3})(\..+)")
_OPEN_CLIP: Final[Mapping[str, str]] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_ENDS: Final[Mapping[str, str]] = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_RESBLOCK: Final = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)\.(weight|bias)")
_IN_PROJ: Final = re.compile(r"transformer\.resblocks\.(\d{1,3})\.attn\.in_proj_(weight|bias)")


def vae_name(name: str, n_up: int) -> Named:
    """Of an autoencoder whose decoder has `n_up` blocks, which publishers count from the last."""
    for pattern, ours in _VAE if name.endswith(_KINDS) else ():
        if pattern.fullmatch(name) is not None:
            found = pattern.sub(ours, name).replace("nin_shortcut", "conv_shortcut")
            return (_UP.sub(lambda up: f"{up[1]}{n_up - 1 - int(up[2])}{up[3]}", found),)
    return ()


def of_transformers(*, projects: bool) -> Callable[[str], Named]:
    """Names of a text encoder in transformers' own; what is computed, or stored twice, is left out."""

    def names_of(name: str) -> Named:
        unused = name.endswith(_IGNORED) or (name.startswith(PROJECTION) and not projects)
        return () if unused or not name.endswith(_KINDS) else (name,)

    return names_of


def of_open_clip(n_layers: int, *, projects: bool) -> Callable[[str], Named]:
    """The same in OpenCLIP's, of the first `n_layers`: the folder's configuration may leave out the last."""

    def names_of(name: str) -> Named:
        if name == PROJECTION:
            return (f"{PROJECTION}.weight",) if projects else ()
        if name in _OPEN_CLIP_ENDS:
            return (_MODEL + _OPEN_CLIP_ENDS[name],)
        if (match := _IN_PROJ.fullmatch(name)) is not None and int(match[1]) < n_layers:
            return tuple(f"{_MODEL}encoder.layers.{match[1]}.self_attn.{one}_proj.{match[2]}" for one in "qkv")
        match = _RESBLOCK.fullmatch(name)
        if match is None or int(match[1]) >= n_layers or match[2] not in _OPEN_CLIP:
            return ()
        return (f"{_MODEL}encoder.layers.{match[1]}.{_OPEN_CLIP[match[2]]}.{match[3]}",)

    return names_of
