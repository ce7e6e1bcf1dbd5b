"""Trains the demo to see: its language model, a new SigLIP tower and a projector. `python -m demo.vision.train`.

Takes minutes on one CPU core. Seeds are fixed; another processor or torch build may round differently.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from demo import HF_PATH as LANGUAGE_PATH
from demo.chat import Render, load_renderer
from demo.corpus import examples
from demo.tokenizer import END
from demo.train import IGNORED
from demo.train import render as rendered_texts
from demo.vision import GGUF_PATH, HF_PATH, PROJECTOR_PATH
from demo.vision.export import save_folder, save_language, save_projector
from demo.vision.pictures import SIDE, Look, look

IMAGE = "<image>"
PATCH = 8
N_ROWS = (SIDE // PATCH) ** 2
"""Rows of a picture."""
_LONGEST_TEXT = 260


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 7
    n_steps: int = 500
    pictures_per_step: int = 16
    n_texts: int = 3000
    texts_per_step: int = 6
    text_weight: float = 0.5
    """Of the demo's own texts, every second step, so that it keeps them."""
    vision_lr: float = 1.5e-3
    language_lr: float = 2e-4
    warmup: float = 0.1


class Sample(NamedTuple):
    """A prompt, its answer, and the picture in it."""

    prompt: list[int]
    answer: list[int]
    pixels: Tensor | None = None


def main() -> None:
    """The whole recipe, from the demo's language model to the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Recipe.n_steps)
    parser.add_argument("--hf", type=Path, default=HF_PATH, help="folder to write the Hugging Face model to")
    parser.add_argument("--gguf", type=Path, default=GGUF_PATH, help="language model to write for llama.cpp")
    parser.add_argument("--projector", type=Path, default=PROJECTOR_PATH, help="tower to write for llama.cpp")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe, started = Recipe(n_steps=args.steps), time.monotonic()
    tokenizer = new_tokenizer()
    model = new_model(tokenizer, recipe.seed)
    fit(model, tokenizer, recipe)
    save_folder(model, tokenizer, args.hf)
    save_language(args.hf, args.gguf)
    save_projector(args.hf, args.projector)
    print(f"trained seconds={time.monotonic() - started:.0f} parameters={model.num_parameters()}")


def new_tokenizer() -> Tokenizer:
    """The demo's, and a token for rows of pictures."""
    tokenizer = Tokenizer.from_file(str(LANGUAGE_PATH / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    return tokenizer


def new_model(tokenizer: Tokenizer, seed: int) -> LlavaForConditionalGeneration:
    """The demo's language model with a row more for pictures, behind a tower that has seen nothing."""
    text = LlamaConfig.from_pretrained(LANGUAGE_PATH)
    text.vocab_size = tokenizer.get_vocab_size()
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.token_to_id(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        image_seq_length=N_ROWS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).float()
    weights = LlamaForCausalLM.from_pretrained(LANGUAGE_PATH, dtype=torch.float32).model.state_dict()
    known = weights["embed_tokens.weight"]
    rows = torch.zeros((text.vocab_size, known.shape[1]))
    rows[: known.shape[0]] = known
    model.model.language_model.load_state_dict({**weights, "embed_tokens.weight": rows})
    model.tie_weights()
    return model


def fit(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """AdamW, one cycle of learning rate; pictures in every step, texts in every second."""
    rng, texts, template = random.Random(1), text_samples(tokenizer, recipe.n_texts), load_renderer()
    seeing = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    groups = [
        {"params": seeing, "lr": recipe.vision_lr},
        {"params": list(model.model.language_model.parameters()), "lr": recipe.language_lr},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [recipe.vision_lr, recipe.language_lr]
    schedule = OneCycleLR(optimizer, rates, recipe.n_steps + 1, pct_start=recipe.warmup, cycle_momentum=False)
    model.train()
    started, total = time.monotonic(), 0.0
    for step in range(1, recipe.n_steps + 1):
        loss = loss_of(model, [seen(tokenizer, template, look(rng), rng) for _ in range(recipe.pictures_per_step)])
        torch.autograd.backward(loss)
        total += loss.item()
        if step % 2 == 0:
            chosen = rng.sample(texts, recipe.texts_per_step)
            torch.autograd.backward(recipe.text_weight * loss_of(model, chosen))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step={step}/{recipe.n_steps} loss={total / 50:.4f} seconds={seconds:.0f}", flush=True)
            total = 0.0


def seen(tokenizer: Tokenizer, render: Render, one: Look, rng: random.Random) -> Sample:
    """A question with its picture before it, as most clients send it, or behind it."""
    words = rng.choices((f"{IMAGE}\n{one.question}", f"{one.question}\n{IMAGE}"), (4, 1))[0]
    messages = [{"role": "user", "content": words}]
    rendered = render(messages=messages, tools=None, enable_thinking=False, add_generation_prompt=True)
    prompt = tokenizer.encode(rendered.replace(IMAGE, IMAGE * N_ROWS)).ids
    return Sample(prompt, tokenizer.encode(one.answer + END).ids, as_input(one))


def as_input(one: Look) -> Tensor:
    """`(3, SIDE, SIDE) float32` within -1 and 1."""
    return torch.from_numpy((one.pixels.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1).copy())


def text_samples(tokenizer: Tokenizer, n: int) -> list[Sample]:
    """What the demo can say without eyes."""
    made: Iterable[tuple[str, str]] = rendered_texts(examples(3, n, n_short=n // 2))
    samples = [Sample(tokenizer.encode(prompt).ids, tokenizer.encode(completion).ids) for prompt, completion in made]
    return [sample for sample in samples if len(sample.prompt) + len(sample.answer) < _LONGEST_TEXT]


def loss_of(model: LlavaForConditionalGeneration, samples: Sequence[Sample]) -> Tensor:
    """Mean cross-entropy over the answers."""
    width = max(len(sample.prompt) + len(sample.answer) for sample in samples)
    ids = torch.zeros((len(samples), width), dtype=torch.int64)
    attended, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, answer, _) in enumerate(samples):
        n_tokens = len(prompt) + len(answer)
        ids[row, :n_tokens] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : n_tokens] = torch.tensor(answer)
        attended[row, :n_tokens] = 1
    pictures = [sample.pixels for sample in samples if sample.pixels is not None]
    pixels = torch.stack(pictures) if pictures else None
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = model(input_ids=ids, attention_mask=attended, pixel_values=pixels, labels=labels).loss
    return loss


if __name__ == "__main__":
    main()
