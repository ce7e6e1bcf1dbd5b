"""Greedy answers from the Hugging Face folder, many at a time; for the recipe's own check, not for serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo.chat import Render, load_renderer
from demo.evaluate import Case
from demo.tokenizer import END, PAD


@dataclass(frozen=True)
class Asker:
    """The model in float32 beside its tokenizer and template."""

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    render: Render

    @classmethod
    def load(cls, folder: Path) -> "Asker":
        """Read a Hugging Face folder of the demo."""
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, Tokenizer.from_file(str(folder / "tokenizer.json")), load_renderer())

    def prompt(self, case: Case) -> str:
        """The text that the model continues."""
        return self.render(
            messages=case.messages,
            tools=case.tools,
            enable_thinking=case.enable_thinking,
            add_generation_prompt=True,
        )

    def answer_all(self, cases: Sequence[Case], *, n_max_tokens: int = 220, batch: int = 32) -> list[str]:
        """One text per case, special tokens left out; cases are batched by the length of their answers."""
        order = sorted(range(len(cases)), key=lambda i: len(cases[i].expected))
        texts = [""] * len(cases)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            answers = self._answer([self.prompt(cases[i]) for i in chosen], n_max_tokens)
            for i, text in zip(chosen, answers, strict=True):
                texts[i] = text
        return texts

    def _answer(self, prompts: list[str], n_max_tokens: int) -> list[str]:
        encoded = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        width = max(map(len, encoded))
        pad = self.tokenizer.token_to_id(PAD)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=n_max_tokens,
                eos_token_id=self.tokenizer.token_to_id(END),
                pad_token_id=pad,
            )
        return [self.tokenizer.decode(row.tolist()) for row in out[:, width:]]
