"""Trains the demo that draws: a tokenizer, an autoencoder, a text encoder and a U-Net. `python -m demo.draw.train`.

Takes minutes on one CPU core. Seeds are fixed; another processor or torch build may round differently.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.draw import PATH
from demo.draw.pictures import Picture, background_of, exam, picture

_SIZES: Final = ((64, 64), (64, 64), (64, 64), (96, 64))
"""Heights and widths of the pictures, in the order in which batches are made of them."""
_START, _END = "<|startoftext|>", "<|endoftext|>"
_MOST_TOKENS: Final = 32


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 11
    vocabulary: int = 700
    width: int = 48
    """Of the text encoder."""
    vae_steps: int = 1500
    vae_batch: int = 8
    vae_lr: float = 2e-3
    n_pictures: int = 3000
    """Of each size, which the U-Net learns from."""
    steps: int = 2400
    batch: int = 64
    lr: float = 2e-3
    dropped: float = 0.1
    """The share of prompts that are left out, so that guidance has something to compare with."""
    even: float = 8.0
    """What the mean over a picture weighs beside its single cells: that is the background's colour."""


def main() -> None:
    """The whole recipe, from nothing to the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--vae-steps", type=int, default=Recipe.vae_steps)
    parser.add_argument("--pictures", type=int, default=Recipe.n_pictures)
    parser.add_argument("--out", type=Path, default=PATH, help="folder to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe, started = Recipe(steps=args.steps, vae_steps=args.vae_steps, n_pictures=args.pictures), time.monotonic()
    pipe = new_pipeline(recipe)
    fit_vae(pipe.vae, recipe)
    fit(pipe, recipe)
    save(pipe, args.out)
    pipe.to(torch.float32)
    right = n_right(pipe, 60)
    parts = (pipe.vae, pipe.unet, pipe.text_encoder)
    n = sum(weight.numel() for part in parts for weight in part.parameters())
    print(f"trained seconds={time.monotonic() - started:.0f} parameters={n} backgrounds_right={right}/60")


def new_pipeline(recipe: Recipe) -> StableDiffusionPipeline:
    """All parts, untrained."""
    torch.manual_seed(recipe.seed)
    tokenizer = new_tokenizer(recipe)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_MOST_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 48),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=recipe.width,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
    )
    noise = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=True,  # else training sees the mean colour in the last of the noise
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_tokenizer(recipe: Recipe) -> CLIPTokenizer:
    """Byte pairs as CLIP has them, learnt from the prompts."""
    rng = random.Random(recipe.seed)
    bare = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bare.normalizer = normalizers.Lowercase()
    bare.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        show_progress=False,
        special_tokens=[_START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    bare.train_from_iterator([picture(rng, 8, 8).prompt for _ in range(4000)], trainer)
    model = json.loads(bare.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [_START, _END, *letters, *(letter + "</w>" for letter in letters)]
    names += [name for name in model["vocab"] if name not in set(names)]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=_MOST_TOKENS)


def begin(vae: AutoencoderKL) -> None:
    """Weights from which an image passes at once: blocks that add nothing yet, and convolutions that keep its size.

    The library's own begin with biases that are larger than the picture; 400 steps did not find it behind them.
    """
    for name, part in vae.named_modules():
        if not isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            continue
        if part.bias is not None:
            torch.nn.init.zeros_(part.bias)
        if name.endswith((".conv2", ".to_out.0")):
            torch.nn.init.zeros_(part.weight)
        elif isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, nonlinearity="linear")


def fit_vae(vae: AutoencoderKL, recipe: Recipe) -> None:
    """Pictures through the narrow part and back, small ones first; then the scale of latents."""
    rng, started = random.Random(recipe.seed), time.monotonic()
    begin(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = OneCycleLR(optimizer, recipe.vae_lr, recipe.vae_steps + 1, pct_start=0.1, cycle_momentum=False)
    vae.train()
    for step in range(1, recipe.vae_steps + 1):
        side = 32 if step <= recipe.vae_steps * 0.6 else 64
        shown = as_input([picture(rng, side, side) for _ in range(recipe.vae_batch)])
        narrow = vae.encode(shown).latent_dist.mean
        seen = vae.decode(narrow + 0.02 * torch.randn_like(narrow)).sample
        loss = functional.mse_loss(seen, shown) + 0.2 * functional.l1_loss(seen, shown)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"vae step={step} loss={loss.item():.4f} seconds={time.monotonic() - started:.0f}", flush=True)
    vae.eval().requires_grad_(requires_grad=False)
    latents = encoded(vae, [picture(rng, 64, 64) for _ in range(128)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def fit(pipe: StableDiffusionPipeline, recipe: Recipe) -> None:
    """The text encoder and the U-Net together, on latents that were made before."""
    rng, started = random.Random(recipe.seed + 1), time.monotonic()
    torch.manual_seed(recipe.seed + 1)
    shelves = [taught(pipe, rng, recipe.n_pictures, *size) for size in dict.fromkeys(_SIZES)]
    by_size = dict(zip(dict.fromkeys(_SIZES), shelves, strict=True))
    weights = [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
    schedule = OneCycleLR(optimizer, recipe.lr, recipe.steps + 1, pct_start=0.05)
    nothing = pipe.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    total = 0.0
    for step in range(1, recipe.steps + 1):
        latents, ids = by_size[_SIZES[step % len(_SIZES)]]
        rows = torch.randint(len(latents), (recipe.batch,))
        asked = torch.where(torch.rand(recipe.batch, 1) < recipe.dropped, nothing, ids[rows])
        loss = loss_of(pipe, latents[rows], asked, even=recipe.even)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            told = f"step={step}/{recipe.steps} loss={total / 100:.4f} seconds={time.monotonic() - started:.0f}"
            print(f"{told} backgrounds_right={n_right(pipe, 24)}/24", flush=True)
            total = 0.0


def taught(pipe: StableDiffusionPipeline, rng: random.Random, n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Latents `(n, 4, height / 8, width / 8)` and their prompts' tokens `(n, 32)`."""
    shown = [picture(rng, height, width) for _ in range(n)]
    latents = encoded(pipe.vae, shown) * pipe.vae.config.scaling_factor
    ids = pipe.tokenizer([one.prompt for one in shown], padding="max_length", return_tensors="pt").input_ids
    return latents, ids


def encoded(vae: AutoencoderKL, shown: list[Picture]) -> Tensor:
    """`(n, 4, height / 8, width / 8) float32`, unscaled."""
    with torch.no_grad():
        return torch.cat([vae.encode(as_input(shown[i : i + 32])).latent_dist.mean for i in range(0, len(shown), 32)])


def as_input(shown: list[Picture]) -> Tensor:
    """`(n, 3, height, width) float32` within -1 and 1."""
    pixels = np.stack([one.pixels for one in shown]).astype(np.float32)
    return torch.from_numpy((pixels / 127.5 - 1).transpose(0, 3, 1, 2).copy())


def loss_of(pipe: StableDiffusionPipeline, latents: Tensor, ids: Tensor, *, even: float) -> Tensor:
    """Mean square of what is wrong in the predicted velocity, in each cell and in the mean over all of them."""
    noise, times = torch.randn_like(latents), torch.randint(1000, (len(latents),))
    noisy = pipe.scheduler.add_noise(latents, noise, times)
    wanted = pipe.scheduler.get_velocity(latents, noise, times)
    wrong = pipe.unet(noisy, times, encoder_hidden_states=pipe.text_encoder(ids)[0]).sample - wanted
    return torch.square(wrong).mean() + even * torch.square(wrong.mean((2, 3))).mean()


def n_right(pipe: StableDiffusionPipeline, n: int) -> int:
    """How many backgrounds of so many prompts have the colour that was asked for, by the library's own loop."""
    pipe.set_progress_bar_config(disable=True)
    asked = list(exam(n))
    with torch.random.fork_rng():
        chance = [torch.Generator().manual_seed(seed) for seed in range(n)]
        wishes: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 8, "guidance_scale": 3.0}
        images = pipe([prompt for prompt, _ in asked], generator=chance, **wishes).images
    seen = [background_of(np.asarray(image)) for image in images]
    return sum(colour == wanted for colour, (_, wanted) in zip(seen, asked, strict=True))


def save(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """F16 safetensors, as diffusers lays a folder out."""
    shutil.rmtree(folder, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main()
