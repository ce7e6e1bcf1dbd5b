"""One forward pass of a transformers model over a flat batch: token ids and positions in, logits of some tokens out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.bnb.attention import Pass, Survey
    from backends.bnb.lora import LoraAdapters


class Runner:
    """The model, called the way its cache wants it."""

    def __init__(self, model: Any, *, device: torch.device) -> None:
        self._model = model
        self.device = device
        self._picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.adapters: LoraAdapters | None = None

    @torch.inference_mode()
    def forward(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        outputs: NDArray[np.intp],
        work: Pass | Survey,
        *,
        images: tuple[NDArray[np.intp], NDArray[np.float32]] | None = None,
        adapters: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """`(len(outputs), n_vocab) float32` logits of the tokens at those places of the pass, in host memory.

        `positions` is `(n,)`, or `(n_sections, n)` for M-RoPE; `images` are places of the pass and the rows there;
        `adapters` is `(n,)`, each row's by number, -1 for none, and None where the model has none.
        """
        if self.adapters is None or adapters is None:
            return self._logits(tokens, positions, outputs, work, images)
        self.adapters.choose(adapters, outputs if self._picks_rows else np.arange(tokens.size))
        try:
            return self._logits(tokens, positions, outputs, work, images)
        finally:
            self.adapters.rest()

    def _logits(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        outputs: NDArray[np.intp],
        work: Pass | Survey,
        images: tuple[NDArray[np.intp], NDArray[np.float32]] | None,
    ) -> NDArray[np.float32]:
        ids = torch.from_numpy(tokens).to(self.device, torch.int64)[None]
        places = torch.from_numpy(positions).to(self.device, torch.int64)
        places = places[None] if places.ndim == 1 else places[:, None]
        wanted = torch.from_numpy(outputs).to(self.device)
        said: dict[str, Any] = {"input_ids": ids}
        if images is not None:
            said, deeper = self._with_images(ids, *images)
            if deeper:
                hidden = self._model.get_decoder()(**said, **deeper, position_ids=places, use_cache=False, work=work)[0]
                return _in_host_memory(self._model.get_output_embeddings()(hidden[0, wanted]))
        kept = {"logits_to_keep": wanted} if self._picks_rows else {}
        answer = self._model(**said, position_ids=places, use_cache=False, work=work, **kept)
        logits = answer.logits[0] if self._picks_rows else answer.logits[0, wanted]
        return _in_host_memory(logits)

    def _with_images(
        self, ids: torch.Tensor, places: NDArray[np.intp], rows: NDArray[np.float32]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The embeddings of tokens, `(1, n, n_embd)`, at some places what an image became, and what deeper layers
        take.
        """
        embeddings: torch.Tensor = self._model.get_input_embeddings()(ids).clone()
        at, width = torch.from_numpy(places).to(self.device), embeddings.shape[-1]
        parts = torch.split(torch.from_numpy(rows).to(self.device, embeddings.dtype), width, dim=1)
        embeddings[0, at] = parts[0]
        if len(parts) == 1:
            return {"inputs_embeds": embeddings}, {}
        mask = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        mask[0, at] = True
        return {"inputs_embeds": embeddings}, {"visual_pos_masks": mask, "deepstack_visual_embeds": list(parts[1:])}


def _in_host_memory(logits: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = logits.to("cpu", torch.float32).numpy()
    return found
