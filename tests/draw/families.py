"""Folders of random weights in the shapes of Stable Diffusion XL, 3 and Flux, with tokenizers made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ("a", "red", "blue", "yellow", "purple", "green", "circle", "square", "triangle", "background", "on")
PROMPT = "a yellow square on a purple background"
LONG = " ".join(["a yellow square"] * 12)
"""More than CLIP's 30 tokens, and fewer than T5's."""
CLIP_TOKENS = 32
CHANNELS = 16
"""Of the latents of transformers."""


def t5_tokenizer() -> Any:
    """Words whole and letters for the others, as SentencePiece has them; ends prompts with `</s>`."""
    from transformers import T5TokenizerFast

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(f"▁{word}", -3.0) for word in WORDS]
    vocab += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def t5(width: int) -> Any:
    """An encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_ff": 37, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=64, feed_forward_proj="gated-gelu", **sizes)).eval()


def clip(tokenizer: Any, kind: Any, width: int = 32, *, projects_to: int = 24) -> Any:
    """Of three layers."""
    from transformers import CLIPTextConfig

    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"hidden_size": width, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer), projection_dim=projects_to, max_position_embeddings=CLIP_TOKENS, **sizes, **ids
        )
    ).eval()


def autoencoder() -> Any:
    """Of 16 channels, shifted, and without the layers around them, as Stable Diffusion 3 and Flux have it."""
    from diffusers import AutoencoderKL

    sides = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=CHANNELS,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5, force_upcast=True,
        **sides,
    )  # fmt: skip


def xl(made: Path, folder: Path, *, widths: tuple[int, int] = (32, 32)) -> Path:
    """Its shape, with the other's tokenizer and autoencoder; `widths` of the two text encoders."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(3)
    tokenizer = CLIPTokenizer.from_pretrained(made / "tokenizer")
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(made / "vae"),
        text_encoder=clip(tokenizer, CLIPTextModel, widths[0]),
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, widths[1]),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
            use_linear_projection=True, addition_embed_type="text_time", norm_num_groups=8,
            addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=72,
            cross_attention_dim=sum(widths),
        ),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def sd3(made: Path, folder: Path, *, with_t5: bool = True, as_published: bool = False) -> Path:
    """Its shape, with a second attention in its first block as 3.5 has it; `as_published` with text encoders of two
    widths, of which the first does not project."""
    import diffusers
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(3)
    tokenizer = CLIPTokenizer.from_pretrained(made / "tokenizer")
    pooled = 56 if as_published else 48
    first = clip(tokenizer, CLIPTextModelWithProjection, projects_to=32 if as_published else 24)
    if as_published:
        torch.nn.init.eye_(first.text_projection.weight)
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=CHANNELS, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=72, caption_projection_dim=32, pooled_projection_dim=pooled,
            out_channels=CHANNELS, pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=first,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, 40 if as_published else 32),
        text_encoder_3=t5(72) if with_t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def flux(made: Path, folder: Path, *, is_schnell: bool = False, wide: bool = False) -> Path:
    """Its shape; schnell has no place for the guidance, and does not shift its times. `wide`: of 9 million numbers."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(5)
    tokenizer = CLIPTokenizer.from_pretrained(made / "tokenizer")
    n_joint, n_single, n_heads = (2, 4, 16) if wide else (1, 2, 2)
    pipe = diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4 * CHANNELS, num_layers=n_joint, num_single_layers=n_single,
            attention_head_dim=16, num_attention_heads=n_heads, joint_attention_dim=40,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
            guidance_embeds=not is_schnell,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=not is_schnell, shift=1.0 if is_schnell else 3.0
        ),
        vae=autoencoder(),
        text_encoder=clip(tokenizer, CLIPTextModel),
        text_encoder_2=t5(40),
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder
