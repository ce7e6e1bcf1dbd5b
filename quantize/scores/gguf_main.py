"""Child process: a GGUF model answers `reader`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.llama import Model
from quantize.scores.answering import answer


class GgufScorer:
    """llama.cpp as a scorer."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._model = Model(Path(request["path"]), n_ctx=request["n_ctx"], threads=request["threads"])
        self.n_vocab = self._model.n_vocab
        self.first_token = self._model.first_token

    def tokenize(self, text: str) -> list[int]:
        """Without special tokens."""
        return self._model.tokenize(text)

    def logits(self, window: Sequence[int], first_output: int) -> npt.NDArray[np.float32]:
        """See `Scorer`."""
        self._model.forget()
        return self._model.decode(window, first_output=first_output)

    def decode_one(self, token: int, at: int) -> int:
        """See `Scorer`."""
        return int(self._model.decode([token], at=at)[0].argmax())


if __name__ == "__main__":
    answer(GgufScorer, can_tokenize=True)
