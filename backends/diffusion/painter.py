"""The networks of one folder: a prompt to what the denoiser is told, latents to what is noise in them, and to pixels.

Rows are independent: each has a time of its own, so images at different steps share a forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.engine import JobError

if TYPE_CHECKING:
    from backends.diffusion.adapted import ImageAdapters
    from backends.diffusion.header import DrawHeader
    from backends.messages import Device

TokenIds = tuple[tuple[int, ...], ...]
"""A prompt for each text encoder, as long as that reads."""


@dataclass(frozen=True)
class Condition:
    """A prompt as the denoiser is told it."""

    context: Tensor
    """`(1, n_tokens, width)`."""
    pooled: Tensor | None
    """`(1, width)`, where the model has more than one encoder."""


@dataclass(frozen=True)
class Row:
    """One image in a forward pass: its latents `(1, channels, height, width)`, ready for the network."""

    latents: Tensor
    time: Tensor
    condition: Condition
    guidance: float = 0.0
    """What a network is told that has a place for it."""
    adapter: str = ""
    """Which all rows of a pass share."""
    adapter_scale: float = 1.0


@dataclass(frozen=True)
class Encoder:
    """A text encoder with its tokenizer."""

    network: Any
    tokenizer: Any
    most: int
    """Tokens that it reads, its start and its end among them."""
    reads_all: bool
    """Whether it reads the prompt even where there is a short one."""

    def ids(self, text: str, param: str) -> tuple[int, ...]:
        """Filled up. Raises JobError for more than it reads: nothing is cut."""
        ids = self.tokenizer(text, truncation=False).input_ids
        if len(ids) > self.most:
            own = len(self.tokenizer("").input_ids)
            told = f"the prompt has {len(ids) - own} tokens, and this model's text encoder reads {self.most - own}. "
            hint = "hint: say it shorter; nothing of a prompt is cut off here"
            raise JobError("invalid_value", told + hint, param=param)
        return tuple(ids + [self.tokenizer.pad_token_id] * (self.most - len(ids)))

    def n_tokens(self, text: str) -> int:
        """Without its start and its end."""
        return len(self.tokenizer(text, truncation=False).input_ids) - len(self.tokenizer("").input_ids)


class Painter(ABC):
    """See above; not for two threads at once, but for `read`."""

    def __init__(
        self,
        *,
        header: DrawHeader,
        networks: Mapping[str, Any],
        encoders: Sequence[Encoder],
        scheduler_config: dict[str, Any],
        device: Device,
        empty_is_zero: bool,
        adapters: ImageAdapters,
    ) -> None:
        self._denoiser, self._vae = networks[header.family.denoiser], networks["vae"]
        self._header, self._encoders = header, encoders
        self.scheduler_config = scheduler_config
        self.device = device
        self._empty_is_zero = empty_is_zero
        self._adapters = adapters
        self.dtype: torch.dtype = self._denoiser.dtype
        self.channels = int(header.vae["latent_channels"])

    def read(self, text: str, param: str, short: str = "") -> TokenIds:
        """The tokens of a prompt; CLIP reads `short` where there is one. Raises JobError as `Encoder.ids`."""
        found = []
        for encoder in self._encoders:
            is_short = bool(short) and not encoder.reads_all
            try:
                found.append(encoder.ids(short if is_short else text, "short_prompt" if is_short else param))
            except JobError as error:
                if not (self._encoders[-1].reads_all and param == "prompt" and not short) or encoder.reads_all:
                    raise
                more = f"{error}. Or: give CLIP a short_prompt, and T5 reads up to {self._encoders[-1].most - 1}"
                raise JobError("invalid_value", more, param=param) from None
        return tuple(found)

    def n_tokens(self, text: str) -> int:
        """Of a prompt, without its start and its end, for the encoder that reads most."""
        return self._encoders[-1].n_tokens(text)

    @torch.inference_mode()
    def condition(
        self, ids: TokenIds, *, is_empty_negative: bool = False, adapter: str = "", adapter_scale: float = 1.0
    ) -> Condition:
        """What the denoiser is told of a prompt."""
        with self._adapters.using(adapter, [adapter_scale]):
            return self._condition(self._given(ids), is_empty_negative=is_empty_negative)

    @abstractmethod
    def _condition(self, rows: Sequence[Tensor], *, is_empty_negative: bool) -> Condition:
        """`rows` are `(1, n)` token ids for each encoder."""

    @torch.inference_mode()
    def noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        """What is noise in each of the rows' latents, in one forward pass; `pixels` are height and width."""
        with self._adapters.using(rows[0].adapter, [row.adapter_scale for row in rows]):
            return self._noise(rows, pixels)

    @abstractmethod
    def _noise(self, rows: Sequence[Row], pixels: tuple[int, int]) -> list[Tensor]:
        """See `noise`."""

    def _given(self, ids: TokenIds) -> list[Tensor]:
        return [torch.tensor([one], device=self.device) for one in ids]

    def first_latents(self, height: int, width: int, chance: torch.Generator) -> Tensor:
        """`(1, channels, height, width)` of noise; drawn on the processor, so that a card draws the same image."""
        noise = torch.randn((1, self.channels, height, width), generator=chance, dtype=torch.float32)
        return noise.to(self.device)

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
