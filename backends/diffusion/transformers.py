"""Stable Diffusion 3 and Flux: CLIP's encoders, T5, and a transformer that attends jointly to prompt and image.

https://arxiv.org/abs/2403.03206; as diffusers' `StableDiffusion3Pipeline` and `FluxPipeline` ask the networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from backends.diffusion.painter import Condition, Painter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.diffusion.painter import Row


class JointPainter(Painter):
    """Stable Diffusion 3; without T5 its place is filled with zeros. See `Painter`."""

    def _condition(self, rows: Sequence[Tensor], *, is_empty_negative: bool) -> Condition:
        """The last but one layers of both CLIPs side by side, and behind them T5's last."""
        clips = [
            one.network(row, output_hidden_states=True) for one, row in zip(self._encoders[:2], rows, strict=False)
        ]
        width = int(self._denoiser.config.joint_attention_dim)
        short = torch.cat([one.hidden_states[-2] for one in clips], dim=-1)
        short = functional.pad(short, (0, width - short.shape[-1]))
        if len(self._encoders) > len(clips):
            long = self._encoders[2].network(rows[2])[0]
        else:
            long = short.new_zeros(1, self._header.most_tokens, width)
        return Condition(torch.cat([short, long], dim=1), torch.cat([one.text_embeds for one in clips], dim=-1))

    def _noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        """See `Painter.noise`: the direction from the image to its noise."""
        found: Tensor = self._denoiser(
            hidden_states=torch.cat([row.latents for row in rows]).to(self.dtype),
            timestep=torch.stack([row.time.to(self.device) for row in rows]),
            encoder_hidden_states=torch.cat([row.condition.context for row in rows]),
            pooled_projections=_pooled(rows),
            return_dict=False,
        )[0]
        return list(torch.split(found.float(), 1))


class FluxPainter(Painter):
    """Flux: four latents of a square are one token; the guidance is a number that the network is told."""

    def _condition(self, rows: Sequence[Tensor], *, is_empty_negative: bool) -> Condition:
        """T5's last layer, and what CLIP makes of the whole prompt."""
        clip, t5 = rows
        pooled: Tensor = self._encoders[0].network(clip).pooler_output
        return Condition(self._encoders[1].network(t5)[0], pooled)

    def _noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        """See `Painter.noise`: the direction from the image to its noise."""
        context = torch.cat([row.condition.context for row in rows])
        height, width = rows[0].latents.shape[-2:]
        is_told = self._header.guidance == "embedded"
        found: Tensor = self._denoiser(
            hidden_states=_packed(torch.cat([row.latents for row in rows])).to(self.dtype),
            timestep=torch.stack([row.time.to(self.device) for row in rows]).float() / 1000,
            guidance=torch.tensor([row.guidance for row in rows], device=self.device) if is_told else None,
            pooled_projections=_pooled(rows),
            encoder_hidden_states=context,
            txt_ids=torch.zeros(context.shape[1], 3, device=self.device),
            img_ids=_places(height // 2, width // 2).to(self.device),
            return_dict=False,
        )[0]
        return list(torch.split(_unpacked(found.float(), height, width), 1))


def _pooled(rows: Sequence[Row]) -> Tensor:
    return torch.cat([row.condition.pooled for row in rows if row.condition.pooled is not None])


def _places(height: int, width: int) -> Tensor:
    """`(height * width, 3)`: of each token 0, its row and its column."""
    found = torch.zeros(height, width, 3)
    found[..., 1] += torch.arange(height)[:, None]
    found[..., 2] += torch.arange(width)[None, :]
    return found.reshape(height * width, 3)


def _packed(latents: Tensor) -> Tensor:
    """`(n, channels, height, width)` to `(n, height / 2 * width / 2, channels * 4)`."""
    n, channels, height, width = latents.shape
    squares = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, (height // 2) * (width // 2), channels * 4)


def _unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    n, _, channels = tokens.shape
    squares = tokens.view(n, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, channels // 4, height, width)
