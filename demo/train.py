"""Trains the demo from nothing: corpus -> tokenizer -> Llama -> `model/hf` and the GGUF file. `python -m demo.train`.

Takes minutes on two CPU cores. Seeds are fixed; another processor or torch build may round differently.
"""

import argparse
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlamaConfig, LlamaForCausalLM

from demo import GGUF_PATH, HF_PATH
from demo.chat import load_renderer
from demo.corpus import Example, examples
from demo.export import save_gguf, save_hf
from demo.tokenizer import CONTROL, END, PAD, START, USER_DEFINED, train_tokenizer

N_VOCAB = 1024
N_CONTEXT = 4096
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 7
    n_examples: int = 20_000
    n_tokenizer_examples: int = 6_000
    batch_tokens: int = 4096
    lr: float = 3e-3
    warmup: float = 0.05


@dataclass(frozen=True)
class Sample:
    """Token ids of one chat, and the same ids with what is not to be learnt replaced by IGNORED."""

    ids: list[int]
    labels: list[int]


def main() -> None:
    """The whole recipe, from nothing to the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hf", type=Path, default=HF_PATH, help="folder to write the Hugging Face model to")
    parser.add_argument("--gguf", type=Path, default=GGUF_PATH, help="GGUF file to write")
    parser.add_argument("--examples", type=int, default=Recipe.n_examples, help="chats to train on, each seen once")
    args = parser.parse_args()
    recipe = Recipe(n_examples=args.examples)
    started = time.monotonic()
    texts = list(render(examples(recipe.seed, recipe.n_examples)))
    tokenizer = train_tokenizer(tokenizer_texts(texts[: recipe.n_tokenizer_examples]), N_VOCAB)
    samples = tokenize(tokenizer, texts)
    model = new_model(tokenizer, recipe.seed)
    fit(model, list(batches(samples, recipe)), recipe)
    save_hf(model, tokenizer, args.hf)
    save_gguf(args.hf, args.gguf)
    print(f"trained seconds={time.monotonic() - started:.0f} parameters={model.num_parameters()}")


def render(chats: Iterator[Example]) -> Iterator[tuple[str, str]]:
    """Prompt and completion of each chat, as the chat template writes them."""
    template = load_renderer()
    for chat in chats:
        prompt = template(
            messages=chat.messages,
            tools=chat.tools,
            enable_thinking=chat.enable_thinking,
            add_generation_prompt=True,
        )
        yield prompt, chat.completion + END


def tokenizer_texts(texts: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The corpus without its special tokens, and the numbers often enough to become one token each."""
    special = re.compile("|".join(re.escape(token) for token in CONTROL + USER_DEFINED))
    for prompt, completion in texts:
        yield special.sub("\n", prompt + completion)
    yield " ".join(str(n) for n in range(101)) * (len(texts) // 40)


def tokenize(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Sample]:
    """Prompt and completion are encoded apart, because that is how an engine sees them."""
    prompts = tokenizer.encode_batch([prompt for prompt, _ in texts])
    completions = tokenizer.encode_batch([completion for _, completion in texts])
    header = tokenizer.encode(f"{START}assistant\n").ids
    (end,) = tokenizer.encode(END).ids
    return [
        Sample(p.ids + c.ids, history_labels(p.ids, header, end) + c.ids)
        for p, c in zip(prompts, completions, strict=True)
    ]


def history_labels(ids: list[int], header: list[int], end: int) -> list[int]:
    """A prompt's labels: earlier answers but for their first token; all else is IGNORED.

    Earlier turns stand there without a think block, so their first token would teach not to think.
    """
    labels = [IGNORED] * len(ids)
    at = 0
    while (at := at + 1) < len(ids):
        if ids[at : at + len(header)] == header and end in ids[at:]:
            first = at + len(header) + 1
            at = ids.index(end, at)
            labels[first : at + 1] = ids[first : at + 1]
    return labels


def batches(samples: list[Sample], recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded `(n_rows, n_tokens) int64` ids and labels, chats of like length together, in random order."""
    rng = random.Random(recipe.seed)
    groups: list[list[Sample]] = []
    for start in range(0, len(samples), 4000):
        group: list[Sample] = []
        for sample in sorted(samples[start : start + 4000], key=lambda s: len(s.ids)):
            if (len(group) + 1) * len(sample.ids) > recipe.batch_tokens:
                groups.append(group)
                group = []
            group.append(sample)
        groups.append(group)
    rng.shuffle(groups)
    for group in groups:
        width = max(len(sample.ids) for sample in group)
        ids = torch.zeros((len(group), width), dtype=torch.int64)
        labels = torch.full((len(group), width), IGNORED, dtype=torch.int64)
        for row, sample in enumerate(group):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            labels[row, : len(sample.ids)] = torch.tensor(sample.labels)
        yield ids, labels


def new_model(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 1.8 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=N_CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def fit(model: LlamaForCausalLM, work: list[tuple[Tensor, Tensor]], recipe: Recipe) -> None:
    """One pass: Muon for the matrices, AdamW for the embedding and the norms, one cycle of learning rate."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        OneCycleLR(o, recipe.lr, len(work) + 1, pct_start=recipe.warmup, cycle_momentum=False) for o in optimizers
    ]
    model.train()
    started = time.monotonic()
    total = 0.0
    for step, (ids, labels) in enumerate(work, start=1):
        loss = loss_of(model, ids, labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        total += loss.item()
        if step % 25 == 0 or step == len(work):
            seconds = time.monotonic() - started
            print(f"step={step}/{len(work)} loss={total / (step % 25 or 25):.4f} seconds={seconds:.0f}", flush=True)
            total = 0.0


def loss_of(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the learnt tokens; the vocabulary is only multiplied out where it is needed."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        learnt = targets != IGNORED
        logits = model.lm_head(hidden[:, :-1][learnt])
    return torch.nn.functional.cross_entropy(logits.float(), targets[learnt])


if __name__ == "__main__":
    main()
