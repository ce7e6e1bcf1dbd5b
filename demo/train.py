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
from demo.facts import CAPITALS, CITIES, NAMES, OPPOSITES, SKIES, WORDS
from demo.start import set_starting_weights
from demo.tokenizer import CONTROL, END, PAD, START, USER_DEFINED, train_tokenizer

N_VOCAB = 1200
N_CONTEXT = 4096
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 7
    n_examples: int = 22_000
    n_short: int = 10_000
    n_tokenizer_examples: int = 6_000
    batch_tokens: int = 2048
    short_batch_tokens: int = 1024
    matrix_lr: float = 2e-3
    embedding_lr: float = 3e-3
    norm_lr: float = 2e-3
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
    recipe = Recipe(n_examples=args.examples, n_short=args.examples * 5 // 11)
    started = time.monotonic()
    texts = list(render(examples(recipe.seed, recipe.n_examples, n_short=recipe.n_short)))
    tokenizer = train_tokenizer(tokenizer_texts(texts[-recipe.n_tokenizer_examples :]), N_VOCAB)
    samples = tokenize(tokenizer, texts)
    model = new_model(tokenizer, recipe.seed)
    short = batches(samples[: recipe.n_short], recipe.short_batch_tokens, recipe.seed)
    whole = batches(samples[recipe.n_short :], recipe.batch_tokens, recipe.seed)
    fit(model, [*short, *whole], recipe)
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
    """The corpus without its special tokens, and what it speaks of often enough to become one token each.

    A thing that is one token is learnt, and copied from the question, many times sooner.
    """
    special = re.compile("|".join(re.escape(token) for token in CONTROL + USER_DEFINED))
    for prompt, completion in texts:
        yield from special.split(prompt + completion)
    things = [*CAPITALS, *CAPITALS.values(), *CITIES, *OPPOSITES, *NAMES, *WORDS, *SKIES, *map(str, range(51))]
    for _ in range(len(texts) // 25):
        yield " " + " ".join(things)
        yield "\n".join((*CAPITALS.values(), *SKIES, *map(str, range(21))))


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


def batches(samples: list[Sample], n_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded `(n_rows, n_tokens) int64` ids and labels, chats of like length together, in random order."""
    rng = random.Random(seed)
    groups: list[list[Sample]] = []
    for start in range(0, len(samples), 4000):
        group: list[Sample] = []
        for sample in sorted(samples[start : start + 4000], key=lambda s: len(s.ids)):
            if (len(group) + 1) * len(sample.ids) > n_tokens and group:
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
        attn_implementation="eager",  # short rows: a fifth less time than the CPU's fused attention
    )
    model = LlamaForCausalLM(config)
    set_starting_weights(model, seed)
    return model


def fit(model: LlamaForCausalLM, work: list[tuple[Tensor, Tensor]], recipe: Recipe) -> None:
    """One pass: Muon for the matrices, AdamW for the embedding and the norms, one cycle of learning rate."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = {"params": [model.model.embed_tokens.weight], "lr": recipe.embedding_lr}
    muon = torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([embedding, {"params": norms, "lr": recipe.norm_lr}], betas=(0.9, 0.98), weight_decay=0.0)
    optimizers: list[torch.optim.Optimizer] = [muon, adamw]
    schedules = [
        OneCycleLR(o, [g["lr"] for g in o.param_groups], len(work) + 1, pct_start=recipe.warmup, cycle_momentum=False)
        for o in optimizers
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
        if step % 50 == 0 or step == len(work):
            seconds = time.monotonic() - started
            print(f"step={step}/{len(work)} loss={total / (step % 50 or 50):.4f} seconds={seconds:.0f}", flush=True)
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
