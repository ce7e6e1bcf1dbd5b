"""Which tensors a U-Net or an autoencoder has, and in which shapes, by its configuration. Pure.

diffusers' `UNet2DConditionModel` and `AutoencoderKL`, of the blocks that `network_shapes.is_known` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from backends.backend import HeaderError
from backends.diffusion.network_shapes import Shapes, Sizes, linear, norm

_MOST_BLOCKS: Final = 10_000
"""Of transformers in a U-Net, of which XL has 70: a table of a stranger's million would fill the server's memory."""


def unet(config: Mapping[str, Any]) -> Shapes:
    """Of Stable Diffusion 1, 2 and XL. Raises HeaderError for what is no size."""
    size = Sizes("unet", config)
    widths, n_layers = [int(one) for one in config["block_out_channels"]], size.layers("layers_per_block", 2)
    first, levels = widths[0], range(len(widths))
    time = 4 * first
    found = linear("conv_in", first, size("in_channels", 4), 3, 3) | norm("conv_norm_out", first)
    found |= linear("conv_out", size("out_channels", 4), first, 3, 3)
    found |= linear("time_embedding.linear_1", time, first) | linear("time_embedding.linear_2", time, time)
    if config.get("addition_embed_type") == "text_time":
        found |= linear("add_embedding.linear_1", time, size("projection_class_embeddings_input_dim", 2816))
        found |= linear("add_embedding.linear_2", time, time)
    attention = _Attention(config, size("cross_attention_dim", 1280))
    if (n_blocks := (2 * n_layers + 1) * sum(attention.depths)) > _MOST_BLOCKS:
        raise HeaderError(
            f"unet/config.json says up to {n_blocks} transformer blocks, more than any model has. hint: take it as its "
            "publisher has it"
        )
    for i in levels:
        block, is_attending = f"down_blocks.{i}", "CrossAttn" in str(config["down_block_types"][i])
        for j in range(n_layers):
            came = widths[max(i - 1, 0)] if j == 0 else widths[i]
            found |= resnet(f"{block}.resnets.{j}", came, widths[i], time)
            if is_attending:
                found |= attention(f"{block}.attentions.{j}", widths[i], i)
        if i < len(widths) - 1:
            found |= linear(f"{block}.downsamplers.0.conv", widths[i], widths[i], 3, 3)
    for i in (0, 1):
        found |= resnet(f"mid_block.resnets.{i}", widths[-1], widths[-1], time)
    found |= attention("mid_block.attentions.0", widths[-1], len(widths) - 1)
    return found | _way_up(config, widths, n_layers, attention)


def _way_up(config: Mapping[str, Any], widths: Sequence[int], n_layers: int, attention: _Attention) -> Shapes:
    """Each level's blocks take what comes from below, and beside it what waits of the way down."""
    found: Shapes = {}
    for i, width in enumerate(reversed(widths)):
        level = len(widths) - 1 - i
        block, below, above = f"up_blocks.{i}", widths[min(level + 1, len(widths) - 1)], widths[max(level - 1, 0)]
        for j in range(n_layers + 1):
            came, waits = below if j == 0 else width, above if j == n_layers else width
            found |= resnet(f"{block}.resnets.{j}", came + waits, width, 4 * widths[0])
            if "CrossAttn" in str(config["up_block_types"][i]):
                found |= attention(f"{block}.attentions.{j}", width, level)
        if level > 0:
            found |= linear(f"{block}.upsamplers.0.conv", width, width, 3, 3)
    return found


def resnet(name: str, n_in: int, n_out: int, time: int = 0) -> Shapes:
    """A residual block; `time` is the width of what it is told of the time, 0 in autoencoders."""
    found = norm(f"{name}.norm1", n_in) | norm(f"{name}.norm2", n_out)
    found |= linear(f"{name}.conv1", n_out, n_in, 3, 3) | linear(f"{name}.conv2", n_out, n_out, 3, 3)
    found |= linear(f"{name}.time_emb_proj", n_out, time) if time else {}
    return found | (linear(f"{name}.conv_shortcut", n_out, n_in, 1, 1) if n_in != n_out else {})


class _Attention:
    """The transformers of a U-Net."""

    def __init__(self, config: Mapping[str, Any], context: int) -> None:
        depths = config.get("transformer_layers_per_block", 1)
        self.depths = depths if isinstance(depths, list) else [depths] * len(config["block_out_channels"])
        self._context, self._is_linear = context, config.get("use_linear_projection") is True

    def __call__(self, name: str, width: int, level: int) -> Shapes:
        sides = () if self._is_linear else (1, 1)
        found = norm(f"{name}.norm", width)
        for end in ("proj_in", "proj_out"):
            found |= linear(f"{name}.{end}", width, width, *sides)
        for i in range(int(self.depths[level])):
            block = f"{name}.transformer_blocks.{i}"
            for one in ("norm1", "norm2", "norm3"):
                found |= norm(f"{block}.{one}", width)
            found |= linear(f"{block}.ff.net.0.proj", 8 * width, width) | linear(f"{block}.ff.net.2", width, 4 * width)
            for attn, told in (("attn1", width), ("attn2", self._context)):
                found |= {f"{block}.{attn}.to_q.weight": (width, width)}
                found |= {f"{block}.{attn}.to_{one}.weight": (width, told) for one in "kv"}
                found |= linear(f"{block}.{attn}.to_out.0", width, width)
        return found


def vae(config: Mapping[str, Any]) -> Shapes:
    """Of all families. Raises HeaderError for what is no size."""
    size = Sizes("vae", config)
    widths, n_layers = [int(one) for one in config["block_out_channels"]], size.layers("layers_per_block", 1)
    latents = size("latent_channels", 4)
    found = linear("encoder.conv_in", widths[0], size("in_channels", 3), 3, 3)
    found |= linear("encoder.conv_out", 2 * latents, widths[-1], 3, 3) | norm("encoder.conv_norm_out", widths[-1])
    found |= linear("decoder.conv_in", widths[-1], latents, 3, 3) | norm("decoder.conv_norm_out", widths[0])
    found |= linear("decoder.conv_out", size("out_channels", 3), widths[0], 3, 3)
    for side, ordered, per_block, sampler in (
        ("encoder.down_blocks", widths, n_layers, "downsamplers"),
        ("decoder.up_blocks", widths[::-1], n_layers + 1, "upsamplers"),
    ):
        for i, width in enumerate(ordered):
            for j in range(per_block):
                found |= resnet(f"{side}.{i}.resnets.{j}", ordered[max(i - 1, 0)] if j == 0 else width, width)
            if i < len(widths) - 1:
                found |= linear(f"{side}.{i}.{sampler}.0.conv", width, width, 3, 3)
    for side in ("encoder", "decoder"):
        found |= _middle(f"{side}.mid_block", widths[-1])
    for key, name, n in (
        ("use_quant_conv", "quant_conv", 2 * latents),
        ("use_post_quant_conv", "post_quant_conv", latents),
    ):
        found |= linear(name, n, n, 1, 1) if config.get(key, True) is True else {}
    return found


def _middle(name: str, width: int) -> Shapes:
    found = resnet(f"{name}.resnets.0", width, width) | resnet(f"{name}.resnets.1", width, width)
    found |= norm(f"{name}.attentions.0.group_norm", width)
    for one in ("to_q", "to_k", "to_v", "to_out.0"):
        found |= linear(f"{name}.attentions.0.{one}", width, width)
    return found
