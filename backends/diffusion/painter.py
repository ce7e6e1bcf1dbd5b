"""The networks of one folder: a prompt to what the U-Net is told, latents to what is noise in them, latents to pixels.

Rows are independent: each has a time of its own, so images at different steps share a forward pass.
Classifier-free guidance: https://arxiv.org/abs/2207.12598; the conditions of XL: https://arxiv.org/abs/2307.01952
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.engine import JobError

if TYPE_CHECKING:
    from backends.diffusion.adapted import ImageAdapters
    from backends.messages import Device

TokenIds = tuple[tuple[int, ...], ...]
"""A prompt for each text encoder, as long as that reads."""


@dataclass(frozen=True)
class Condition:
    """A prompt as the U-Net is told it."""

    context: Tensor
    """`(1, n_tokens, width)`."""
    pooled: Tensor | None
    """`(1, width)`, where the model has two encoders."""


@dataclass(frozen=True)
class Row:
    """One image in a forward pass: its latents `(1, channels, height, width)`, ready for the network."""

    latents: Tensor
    time: Tensor
    condition: Condition
    adapter: str = ""
    """Which all rows of a pass share."""
    adapter_scale: float = 1.0


class Painter:
    """See above; not for two threads at once, but for `read`."""

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        encoders: Sequence[Any],
        tokenizers: Sequence[Any],
        scheduler_config: dict[str, Any],
        device: Device,
        empty_is_zero: bool,
        adapters: ImageAdapters,
    ) -> None:
        self._unet, self._vae = unet, vae
        self._encoders, self._tokenizers = encoders, tokenizers
        self.scheduler_config = scheduler_config
        self.device = device
        self._empty_is_zero = empty_is_zero
        self._adapters = adapters
        self.dtype: torch.dtype = unet.dtype
        self.channels = int(unet.config.in_channels)

    def read(self, text: str, param: str) -> TokenIds:
        """The tokens of a prompt. Raises JobError where it has more than an encoder reads: none is cut."""
        found = []
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            ids = tokenizer(text, truncation=False).input_ids
            if len(ids) > most:
                raise JobError(
                    "invalid_value",
                    f"the prompt has {len(ids) - 2} tokens, and this model's text encoder reads {most - 2}. "
                    "hint: say it shorter; nothing of a prompt is cut off here",
                    param=param,
                )
            found.append(tuple(ids + [tokenizer.pad_token_id] * (most - len(ids))))
        return tuple(found)

    def n_tokens(self, text: str) -> int:
        """Of a prompt, without its start and its end."""
        return len(self._tokenizers[0](text, truncation=False).input_ids) - 2

    @torch.inference_mode()
    def condition(
        self, ids: TokenIds, *, is_empty_negative: bool = False, adapter: str = "", adapter_scale: float = 1.0
    ) -> Condition:
        """What the U-Net is told of a prompt."""
        with self._adapters.using(adapter, [adapter_scale]):
            return self._condition(ids, is_empty_negative=is_empty_negative)

    def _condition(self, ids: TokenIds, *, is_empty_negative: bool) -> Condition:
        rows = [torch.tensor([one], device=self.device) for one in ids]
        if len(self._encoders) == 1:
            return Condition(self._encoders[0](rows[0], attention_mask=self._mask(rows[0]))[0], None)
        told = [encoder(row, output_hidden_states=True) for encoder, row in zip(self._encoders, rows, strict=True)]
        context = torch.cat([one.hidden_states[-2] for one in told], dim=-1)
        pooled = told[-1].text_embeds
        if is_empty_negative and self._empty_is_zero:
            return Condition(torch.zeros_like(context), torch.zeros_like(pooled))
        return Condition(context, pooled)

    def _mask(self, ids: Tensor) -> Tensor | None:
        """Some folders want the filling of a prompt left out."""
        if not getattr(self._encoders[0].config, "use_attention_mask", False):
            return None
        mask: Tensor = (ids != self._tokenizers[0].pad_token_id).long()
        return mask

    def first_latents(self, height: int, width: int, chance: torch.Generator) -> Tensor:
        """`(1, channels, height, width)` of noise; drawn on the processor, so that a card draws the same image."""
        noise = torch.randn((1, self.channels, height, width), generator=chance, dtype=torch.float32)
        return noise.to(self.device)

    @torch.inference_mode()
    def noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        """What is noise in each of the rows' latents, in one forward pass; `pixels` are height and width."""
        with self._adapters.using(rows[0].adapter, [row.adapter_scale for row in rows]):
            return self._noise(rows, pixels)

    def _noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        added = {}
        if rows[0].condition.pooled is not None:
            height, width = pixels
            times = torch.tensor([[height, width, 0, 0, height, width]] * len(rows), device=self.device)
            pooled = torch.cat([row.condition.pooled for row in rows if row.condition.pooled is not None])
            added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times.to(self.dtype)}}
        found: Tensor = self._unet(
            torch.cat([row.latents for row in rows]).to(self.dtype),
            torch.stack([row.time.to(self.device) for row in rows]),
            encoder_hidden_states=torch.cat([row.condition.context for row in rows]),
            return_dict=False,
            **added,
        )[0]
        return list(torch.split(found.float(), 1))

    @torch.inference_mode()
    def latents(self, shown: NDArray[np.uint8]) -> Tensor:
        """`(1, channels, height / 8, width / 8) float32` of `(height, width, 3) uint8`."""
        config = self._vae.config
        levels = torch.from_numpy(shown.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        found: Tensor = self._vae.encode(levels.to(self.device, self._vae.dtype)).latent_dist.mean
        return (found.float() - float(getattr(config, "shift_factor", None) or 0.0)) * float(config.scaling_factor)

    @torch.inference_mode()
    def pixels(self, latents: Tensor) -> NDArray[np.uint8]:
        """`(height, width, 3) uint8` of `(1, channels, height / 8, width / 8)`. Raises ValueError where it is none."""
        config = self._vae.config
        scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        shown: Tensor = self._vae.decode(scaled.to(self._vae.dtype), return_dict=False)[0]
        if not bool(torch.isfinite(shown).all()):
            raise ValueError("the image came out as no numbers")
        levels = (shown[0].float() / 2 + 0.5).clamp(0, 1) * 255
        made: NDArray[np.uint8] = levels.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return made
