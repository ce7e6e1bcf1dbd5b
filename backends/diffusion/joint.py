"""What a step of a transformer that attends jointly to prompt and image takes: Stable Diffusion 3 and Flux. Pure.

Counted are the numbers that live at once where most do. An image has one token for each patch of its latents, a prompt
as many as its encoders read; every token is as wide as the network. Feed-forward layers are four times as wide.
diffusers' `JointTransformerBlock.forward` and `FluxSingleTransformerBlock.forward`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from backends.diffusion.header import DrawHeader

CLIP_TOKENS: Final = 77
"""Of a prompt for CLIP, which it is filled up to."""
_OF_IMAGE: Final = (13, 3)
"""Maps of the image's and of the prompt's tokens while the image's feed-forward layer is activated: the layer's output
and its activation (8), what the block was given, the sum with attention, its norm, what attention gave, and in the last
block all that attention gave in one row; of the prompt what the block was given, its norm, and what attention gave."""
_OF_PROMPT: Final = (5, 12)
"""The same while the prompt's is, in the blocks before."""
_DUAL: Final = (14, 3)
"""As `_OF_IMAGE` in a block that attends to the image a second time: a norm more and what that gave, and no row."""
_SINGLE: Final = 15
"""Maps of all tokens in a block of Flux that has them in one row, and takes more than its other blocks: what it was
given, the row, its norm, what attention gave, the feed-forward layer's four, both side by side (5), their product, and
that gated."""
_SINGLE_TURNED: Final = 17
"""The same in 16 bits, while a key is turned in float32: what it was given, the row, its norm, the feed-forward
layer's four, query, key and value, half-turned pairs, and three maps of the key twice as wide."""


def prompt_tokens(header: DrawHeader) -> int:
    """Of a prompt as the transformer reads it."""
    if header.pipeline == "FluxPipeline":
        return header.most_tokens
    return CLIP_TOKENS + header.most_tokens


def transformer_values(header: DrawHeader, n_rows: int, size: tuple[int, int], *, is_half: bool = False) -> int:
    """Numbers that live at once while `n_rows` of one size in pixels are computed; `is_half`: in 16 bits."""
    config, side = header.denoiser, header.scale * header.patch
    image, prompt = (size[0] // side) * (size[1] // side), prompt_tokens(header)
    width = int(config["attention_head_dim"]) * int(config["num_attention_heads"])
    told = prompt * int(config["joint_attention_dim"])
    if header.pipeline == "FluxPipeline":
        return n_rows * (width * (_SINGLE_TURNED if is_half else _SINGLE) * (image + prompt) + told)
    maps = (_DUAL if config.get("dual_attention_layers") else _OF_IMAGE, _OF_PROMPT)
    most = max(of_image * image + of_prompt * prompt for of_image, of_prompt in maps)
    return n_rows * (width * most + told)
