"""What the publishers of Stable Diffusion 3 and Flux call the layers of their transformers, and what diffusers does.
Pure.

One layer of theirs may be several of diffusers', which lie behind each other in its rows: query, key and value.
diffusers' `loaders.single_file_utils`: `convert_sd3_transformer_checkpoint_to_diffusers` and that of Flux.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

Names = tuple[str, ...]
_JOINT: Final = "transformer_blocks.{}."
_SINGLE: Final = "single_transformer_blocks.{}."
_QKV: Final = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED: Final = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_FLUX_BLOCKS: Final[Mapping[str, Names]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED,
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_FLUX_SINGLE: Final[Mapping[str, Names]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_SD3_BLOCKS: Final[Mapping[str, Names]] = {
    "x_block.attn.qkv": _QKV,
    "context_block.attn.qkv": _ADDED,
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
TURNED: Final = "final_layer.adaLN_modulation.1"
"""Of both: its rows are a shift and a scale, and diffusers has them the other way round."""
_COMMON: Final[Mapping[str, Names]] = {"final_layer.linear": ("proj_out",), TURNED: ("norm_out.linear",)}


def _embedded(names: Mapping[str, str], inner: tuple[str, str]) -> dict[str, Names]:
    """Two linear layers each, of what is told beside the image."""
    return {
        f"{theirs}.{inner[i]}": (f"time_text_embed.{ours}_embedder.linear_{i + 1}",)
        for theirs, ours in names.items()
        for i in range(2)
    }


FLUX: Final[Mapping[str, Names]] = {
    **{f"double_blocks.{{}}.{name}": tuple(_JOINT + one for one in ours) for name, ours in _FLUX_BLOCKS.items()},
    **{f"single_blocks.{{}}.{name}": tuple(_SINGLE + one for one in ours) for name, ours in _FLUX_SINGLE.items()},
    **_embedded({"time_in": "timestep", "vector_in": "text", "guidance_in": "guidance"}, ("in_layer", "out_layer")),
    **_COMMON,
    "txt_in": ("context_embedder",),
    "img_in": ("x_embedder",),
}
"""By the publisher's name, `{}` in the place of a block's number: diffusers' names, in the order of their rows."""
SD3: Final[Mapping[str, Names]] = {
    **{f"joint_blocks.{{}}.{name}": tuple(_JOINT + one for one in ours) for name, ours in _SD3_BLOCKS.items()},
    **_embedded({"t_embedder.mlp": "timestep", "y_embedder.mlp": "text"}, ("0", "2")),
    **_COMMON,
    "context_embedder": ("context_embedder",),
    "x_embedder.proj": ("pos_embed.proj",),
}
"""The same."""
_NUMBER: Final = re.compile(r"\.(\d{1,3})\.")
"""Of a block; a stranger's longer one is none."""
_ONLY_OF_SD3: Final = "pos_embed.proj"


def diffusers_names(layer: str, table: Mapping[str, Names]) -> Names:
    """The layers that one of a publisher's is; none where it is not known."""
    number = _NUMBER.search(layer)
    if layer in table or number is None:
        return table.get(layer, ())
    pattern = f"{layer[: number.start()]}.{{}}.{layer[number.end() :]}"
    return tuple(one.format(number[1]) for one in table.get(pattern, ()))


def originals(layers: Collection[str]) -> dict[str, Names]:
    """The publisher's names of a transformer's layers, given diffusers', and which these are in the order of rows.

    Not among them is what diffusers has the other way round.
    """
    table, have = SD3 if _ONLY_OF_SD3 in layers else FLUX, set(layers)
    numbers = {int(match[1]) for layer in layers if (match := _NUMBER.search(layer))}
    found: dict[str, Names] = {}
    for pattern, names in table.items():
        for number in numbers if "{}" in pattern else (0,):
            ours = tuple(one.format(number) for one in names)
            if pattern != TURNED and have.issuperset(ours):
                found[pattern.format(number)] = ours
    if table is SD3:
        found.pop(f"joint_blocks.{max(numbers, default=0)}.context_block.adaLN_modulation.1", None)  # turned, too
    return found
