"""Whether a model keeps packed rows apart: tried on the model itself, as each architecture masks in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backends.training.errors import TrainError

if TYPE_CHECKING:
    from backends.training.base import Base

_TOKENS: Final = 8
_RELATIVE: Final = 2e-2
"""Of the largest logit: what sums in another order make of bfloat16, and far below what another row would."""


@torch.no_grad()
def check_apart(base: Base) -> None:
    """Compute a row alone and behind another one. Raises TrainError where that is not the same."""
    base.model.eval()
    device = base.model.get_input_embeddings().weight.device
    n_vocab = base.info.n_vocab
    tokens = torch.arange(1, 2 * _TOKENS + 1, device=device)[None] * 7 % n_vocab
    places = torch.arange(_TOKENS, device=device)[None]
    both = base.model(input_ids=tokens, position_ids=torch.cat([places, places], dim=1), use_cache=False).logits
    alone = base.model(input_ids=tokens[:, _TOKENS:], position_ids=places, use_cache=False).logits
    differs = float((both[:, _TOKENS:] - alone).abs().max()) / max(float(alone.abs().max()), 1e-9)
    if differs > _RELATIVE:
        raise TrainError(
            "bad_model",
            f"packed rows of this {base.info.architecture} model see each other (logits differ by {differs:.0%}). "
            "hint: packing = false",
        )
