"""One forward pass of a transformers model over a flat batch: token ids and positions in, logits of some tokens out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backends.bnb.attention import Pass, Survey


class Runner:
    """The model, called the way its cache wants it."""

    def __init__(self, model: Any, *, device: torch.device) -> None:
        self._model = model
        self.device = device
        self._picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def forward(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], outputs: NDArray[np.intp], work: Pass | Survey
    ) -> NDArray[np.float32]:
        """`(len(outputs), n_vocab) float32` logits of the tokens at those places of the pass, in host memory."""
        ids = torch.from_numpy(tokens).to(self.device, torch.int64)[None]
        places = torch.from_numpy(positions).to(self.device, torch.int64)[None]
        wanted = torch.from_numpy(outputs).to(self.device)
        kept = {"logits_to_keep": wanted} if self._picks_rows else {}
        answer = self._model(input_ids=ids, position_ids=places, use_cache=False, work=work, **kept)
        logits = answer.logits[0] if self._picks_rows else answer.logits[0, wanted]
        found: NDArray[np.float32] = logits.to("cpu", torch.float32).numpy()
        return found
