"""Child process: a model folder, plain or quantised by bitsandbytes, answers `reader` through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends.files import model_files
from quantize.scores.answering import answer


class FolderScorer:
    """transformers as a scorer; on a CPU plain weights are computed in float32."""

    def __init__(self, request: dict[str, Any]) -> None:
        torch.set_num_threads(request["threads"])
        path = Path(request["path"])
        model_files.check_folder(path)
        on_gpu = torch.cuda.is_available()
        self._model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if on_gpu else torch.float32,
            device_map="cuda" if on_gpu else "cpu",
            trust_remote_code=False,
            local_files_only=True,
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        self.n_vocab: int = self._model.get_output_embeddings().weight.shape[0]
        plain = self._tokenizer("x", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("x")["input_ids"]
        self.first_token: int | None = full[0] if full[:1] != plain[:1] else None
        self._past: Any = None

    def tokenize(self, text: str) -> list[int]:
        """Without special tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.no_grad()
    def logits(self, window: Sequence[int], first_output: int) -> npt.NDArray[np.float32]:
        """See `Scorer`."""
        ids = torch.tensor([list(window)], device=self._model.device)
        done = self._model(ids, use_cache=True, logits_to_keep=len(window) - first_output)
        self._past = done.past_key_values
        rows: npt.NDArray[np.float32] = done.logits[0].float().cpu().numpy()
        return rows

    @torch.no_grad()
    def decode_one(self, token: int, at: int) -> int:
        """See `Scorer`."""
        del at
        ids = torch.tensor([[token]], device=self._model.device)
        done = self._model(ids, use_cache=True, past_key_values=self._past)
        self._past = done.past_key_values
        return int(done.logits[0, -1].argmax())


if __name__ == "__main__":
    answer(FolderScorer, can_tokenize=True)
