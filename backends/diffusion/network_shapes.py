"""Which tensors a network of diffusers or transformers has, and in which shapes, by its configuration. Pure.

So a file is held against its folder before anything is loaded. Kinds of blocks that are not known here give None, and
are held against the network itself when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backends.backend import HeaderError

Shapes = dict[str, tuple[int, ...]]
_MOST: Final = 1_000_000
_MOST_LAYERS: Final = 1000
_KNOWN: Final[Mapping[str, frozenset[object]]] = {
    "down_block_types": frozenset({"DownBlock2D", "CrossAttnDownBlock2D", "DownEncoderBlock2D"}),
    "up_block_types": frozenset({"UpBlock2D", "CrossAttnUpBlock2D", "UpDecoderBlock2D"}),
    "mid_block_type": frozenset({"UNetMidBlock2DCrossAttn"}),
    "addition_embed_type": frozenset({None, "text_time"}),
    "resnet_time_scale_shift": frozenset({"default"}),
    "attention_type": frozenset({"default"}),
    "time_embedding_type": frozenset({"positional"}),
    "reverse_transformer_layers_per_block": frozenset({None}),
    "num_attention_heads": frozenset({None}),
    "only_cross_attention": frozenset({None, False}),
    "dual_cross_attention": frozenset({None, False}),
    "mid_block_only_cross_attention": frozenset({None, False}),
    "mid_block_add_attention": frozenset({None, True}),
    "time_embedding_dim": frozenset({None}),
    "conv_in_kernel": frozenset({None, 3}),
    "conv_out_kernel": frozenset({None, 3}),
}
"""What a configuration may say; where it says nothing, that is known too."""


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether the shapes of a U-Net or autoencoder follow from its configuration here."""
    for key, known in _KNOWN.items():
        said = config.get(key)
        values = said if isinstance(said, list) and key.endswith("_types") else [said]
        if key in config and any(isinstance(one, (list, dict)) or one not in known for one in values):
            return False
    if any(isinstance(config.get(key), list) for key in ("layers_per_block", "cross_attention_dim")):
        return False
    n_levels = len(config["block_out_channels"])
    depths = config.get("transformer_layers_per_block", 1)
    each = depths if isinstance(depths, list) else [depths] * n_levels
    lists = [config.get("down_block_types"), config.get("up_block_types"), each]
    if not all(isinstance(one, list) and len(one) == n_levels for one in lists):
        return False
    return all(isinstance(one, int) and 0 < one <= _MOST_LAYERS for one in each)


class Sizes:
    """The numbers of a configuration."""

    def __init__(self, part: str, config: Mapping[str, Any]) -> None:
        self._part, self._config = part, config

    def __call__(self, key: str, otherwise: int, most: int = _MOST) -> int:
        """Raises HeaderError for what is no size."""
        value = self._config.get(key)
        value = otherwise if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise HeaderError(f"{self._part}/config.json says no sound {key}. hint: take it as its publisher has it")
        return value

    def layers(self, key: str, otherwise: int) -> int:
        """Of layers or blocks."""
        return self(key, otherwise, _MOST_LAYERS)


def linear(name: str, n_out: int, n_in: int, *sides: int) -> Shapes:
    """A layer with a bias; `sides` of a convolution."""
    return {f"{name}.weight": (n_out, n_in, *sides), f"{name}.bias": (n_out,)}


def norm(name: str, width: int) -> Shapes:
    """A weight and a bias."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def flux(config: Mapping[str, Any]) -> Shapes:
    """`FluxTransformer2DModel`."""
    size = Sizes("transformer", config)
    head = size("attention_head_dim", 128)
    width, n_joint = head * size("num_attention_heads", 24), size.layers("num_layers", 19)
    n_in = size("in_channels", 64)
    found = {
        **linear("x_embedder", width, n_in),
        **linear("context_embedder", width, size("joint_attention_dim", 4096)),
        **linear("norm_out.linear", 2 * width, width),
        **linear("proj_out", size("out_channels", n_in), width),
    }
    told = {"timestep": 256, "text": size("pooled_projection_dim", 768)}
    found |= _embedders({**told, **({"guidance": 256} if config.get("guidance_embeds") is True else {})}, width)
    for i in range(n_joint):
        found |= _joint_block(f"transformer_blocks.{i}", width)
        found |= {f"transformer_blocks.{i}.attn.norm_{one}.weight": (head,) for one in ("q", "k", "added_q", "added_k")}
    for i in range(size.layers("num_single_layers", 38)):
        block = f"single_transformer_blocks.{i}"
        found |= linear(f"{block}.norm.linear", 3 * width, width) | linear(f"{block}.proj_mlp", 4 * width, width)
        found |= linear(f"{block}.proj_out", width, 5 * width)
        for one in "qkv":
            found |= linear(f"{block}.attn.to_{one}", width, width)
        found |= {f"{block}.attn.norm_{one}.weight": (head,) for one in "qk"}
    return found


def _embedders(inner: Mapping[str, int], width: int) -> Shapes:
    found: Shapes = {}
    for name, n_in in inner.items():
        layer = f"time_text_embed.{name}_embedder.linear_"
        found |= linear(f"{layer}1", width, n_in) | linear(f"{layer}2", width, width)
    return found


def _joint_block(block: str, width: int, *, is_last: bool = False, is_dual: bool = False) -> Shapes:
    """Of prompt and image; the last has nothing behind the prompt's attention."""
    found = linear(f"{block}.norm1.linear", (9 if is_dual else 6) * width, width)
    found |= linear(f"{block}.norm1_context.linear", (2 if is_last else 6) * width, width)
    square = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
    for name in [*square, *([] if is_last else ["to_add_out"])]:
        found |= linear(f"{block}.attn.{name}", width, width)
    for name in square[:4] if is_dual else ():
        found |= linear(f"{block}.attn2.{name}", width, width)
    for name in ("ff",) if is_last else ("ff", "ff_context"):
        found |= linear(f"{block}.{name}.net.0.proj", 4 * width, width)
        found |= linear(f"{block}.{name}.net.2", width, 4 * width)
    return found


def sd3(config: Mapping[str, Any]) -> Shapes:
    """`SD3Transformer2DModel`."""
    size = Sizes("transformer", config)
    head, patch = size("attention_head_dim", 64), size("patch_size", 2)
    width, n_blocks, n_in = (
        head * size("num_attention_heads", 18),
        size.layers("num_layers", 18),
        size("in_channels", 16),
    )
    found = {
        "pos_embed.pos_embed": (1, size("pos_embed_max_size", 96) ** 2, width),
        **linear("pos_embed.proj", width, n_in, patch, patch),
        **linear("context_embedder", size("caption_projection_dim", 1152), size("joint_attention_dim", 4096)),
        **linear("norm_out.linear", 2 * width, width),
        **linear("proj_out", patch * patch * size("out_channels", n_in), width),
        **_embedders({"timestep": 256, "text": size("pooled_projection_dim", 2048)}, width),
    }
    duals = config.get("dual_attention_layers")
    for i in range(n_blocks):
        block, is_dual = f"transformer_blocks.{i}", isinstance(duals, list) and i in duals
        found |= _joint_block(block, width, is_last=i == n_blocks - 1, is_dual=is_dual)
        if config.get("qk_norm") is not None:
            normed = [f"attn.norm_{one}" for one in ("q", "k", "added_q", "added_k")]
            normed += ["attn2.norm_q", "attn2.norm_k"] if is_dual else []
            found |= {f"{block}.{name}.weight": (head,) for name in normed}
    return found


def clip(part: str, config: Mapping[str, Any], *, projects: bool) -> Shapes:
    """`CLIPTextModel`, without what only some versions of transformers write before its names."""
    size = Sizes(part, config)
    width, inner = size("hidden_size", 512), size("intermediate_size", 2048)
    found: Shapes = {
        "embeddings.token_embedding.weight": (size("vocab_size", 49_408), width),
        "embeddings.position_embedding.weight": (size("max_position_embeddings", 77), width),
        **norm("final_layer_norm", width),
        **({"text_projection.weight": (size("projection_dim", 512), width)} if projects else {}),
    }
    for i in range(size.layers("num_hidden_layers", 12)):
        layer = f"encoder.layers.{i}"
        found |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        found |= linear(f"{layer}.mlp.fc1", inner, width) | linear(f"{layer}.mlp.fc2", width, inner)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear(f"{layer}.self_attn.{name}", width, width)
    return found


def t5(part: str, config: Mapping[str, Any]) -> Shapes:
    """`T5EncoderModel`."""
    size = Sizes(part, config)
    width, n_heads, feed = size("d_model", 512), size("num_heads", 8), size("d_ff", 2048)
    inner = size("d_kv", 64) * n_heads
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    found: Shapes = {"shared.weight": (size("vocab_size", 32_128), width), "encoder.final_layer_norm.weight": (width,)}
    buckets = (size("relative_attention_num_buckets", 32), n_heads)
    found["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = buckets
    for i in range(size.layers("num_layers", 6)):
        block = f"encoder.block.{i}.layer"
        found |= {f"{block}.{one}.layer_norm.weight": (width,) for one in (0, 1)}
        found |= {f"{block}.0.SelfAttention.{one}.weight": (inner, width) for one in "qkv"}
        found[f"{block}.0.SelfAttention.o.weight"] = (width, inner)
        found |= {
            f"{block}.1.DenseReluDense.{one}.weight": (feed, width) for one in (("wi_0", "wi_1") if gated else ("wi",))
        }
        found[f"{block}.1.DenseReluDense.wo.weight"] = (width, feed)
    return found
