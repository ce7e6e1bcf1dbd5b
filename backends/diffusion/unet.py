"""Stable Diffusion 1, 2 and XL: CLIP's encoders and a U-Net.

Classifier-free guidance: https://arxiv.org/abs/2207.12598; the conditions of XL: https://arxiv.org/abs/2307.01952
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backends.diffusion.painter import Condition, Painter, Row

if TYPE_CHECKING:
    from collections.abc import Sequence


class UNetPainter(Painter):
    """See `Painter`."""

    def _condition(self, rows: Sequence[Tensor], *, is_empty_negative: bool) -> Condition:
        """What the U-Net is told of a prompt."""
        if len(self._encoders) == 1:
            return Condition(self._encoders[0].network(rows[0], attention_mask=self._mask(rows[0]))[0], None)
        told = [
            encoder.network(row, output_hidden_states=True) for encoder, row in zip(self._encoders, rows, strict=True)
        ]
        context = torch.cat([one.hidden_states[-2] for one in told], dim=-1)
        pooled = told[-1].text_embeds
        if is_empty_negative and self._empty_is_zero:
            return Condition(torch.zeros_like(context), torch.zeros_like(pooled))
        return Condition(context, pooled)

    def _mask(self, ids: Tensor) -> Tensor | None:
        """Some folders want the filling of a prompt left out."""
        if not getattr(self._encoders[0].network.config, "use_attention_mask", False):
            return None
        mask: Tensor = (ids != self._encoders[0].tokenizer.pad_token_id).long()
        return mask

    def _noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        """What is noise in each of the rows' latents, in one forward pass; `pixels` are height and width."""
        added = {}
        if rows[0].condition.pooled is not None:
            height, width = pixels
            times = torch.tensor([[height, width, 0, 0, height, width]] * len(rows), device=self.device)
            pooled = torch.cat([row.condition.pooled for row in rows if row.condition.pooled is not None])
            added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times.to(self.dtype)}}
        found: Tensor = self._denoiser(
            torch.cat([row.latents for row in rows]).to(self.dtype),
            torch.stack([row.time.to(self.device) for row in rows]),
            encoder_hidden_states=torch.cat([row.condition.context for row in rows]),
            return_dict=False,
            **added,
        )[0]
        return list(torch.split(found.float(), 1))
