"""Whisper's decoder as arithmetic: a forward pass over caches whose cells are there from the start.

transformers' own decoder makes its masks anew and copies its caches at each token, and keeps what it knows of the sound
for one try alone. Here the keys and values of a sound are computed once, for its language, its text and further tries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import embedding, scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Sound:
    """What each layer of the decoder looks at of some windows."""

    layers: tuple[KeysValues, ...]
    """`(n, heads, size, positions)` keys and `(n, heads, positions, size)` values, each in the order of its memory.

    So one token looks at them in a half to a quarter of the time, and the time of several rows is theirs.
    """

    @property
    def n_rows(self) -> int:
        """How many windows."""
        return self.layers[0][0].shape[0]

    def only(self, rows: Sequence[int]) -> Sound:
        """Of these windows; copies them where they are not all."""
        if list(rows) == list(range(self.n_rows)):
            return self
        picked = torch.tensor(rows, device=self.layers[0][0].device)
        return Sound(tuple((keys[picked], values[picked]) for keys, values in self.layers))


@dataclass
class Cells:
    """Keys and values of the tokens so far, of all rows; shorter rows are filled up on the left."""

    layers: tuple[KeysValues, ...]
    """`(n, heads, cells, size)` each."""
    starts: torch.Tensor
    """`(n,)`: the first cell of each row."""
    is_even: bool
    """All rows start at the first cell."""
    n_used: int = 0

    def mask(self, n_new: int) -> torch.Tensor | None:
        """`(n, 1, n_new, used) bool`: which cells the tokens that were written last may look at; None for all."""
        if n_new == 1 and self.is_even:
            return None
        cells = torch.arange(self.n_used, device=self.starts.device)
        own = cells[-n_new:, None]
        from_start = cells >= self.starts[:, None, None, None]
        return (from_start & (cells <= own)) | (cells == own)  # what fills up looks at itself: no row is empty


class Decoder:
    """Of one loaded model, whose linear layers may be of any kind."""

    def __init__(self, model: Any) -> None:
        self._decoder = model.model.decoder
        self._layers = list(self._decoder.layers)
        self._n_heads: int = model.config.decoder_attention_heads
        self._positions: torch.Tensor = self._decoder.embed_positions.weight
        self.n_places: int = model.config.max_target_positions

    @torch.inference_mode()
    def sound(self, hidden: torch.Tensor) -> Sound:
        """Of the encoder's `(n, positions, width)`."""
        layers = []
        for layer in self._layers:
            keys = self._by_head(layer.encoder_attn.k_proj(hidden)).transpose(2, 3)
            values = self._by_head(layer.encoder_attn.v_proj(hidden))
            layers.append((keys.contiguous(), values.contiguous()))
        return Sound(tuple(layers))

    def cells(self, starts: Sequence[int], n_cells: int) -> Cells:
        """For rows that start at these cells."""
        weight = self._positions
        size = weight.shape[1] // self._n_heads
        shape = (len(starts), self._n_heads, n_cells, size)
        made = tuple((weight.new_empty(shape), weight.new_empty(shape)) for _ in self._layers)
        return Cells(made, torch.tensor(starts, device=weight.device), is_even=not any(starts))

    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, cells: Cells, sound: Sound) -> torch.Tensor:
        """`(n, new)` tokens into the next cells -> `(n, new, width)` states."""
        first, n_new = cells.n_used, ids.shape[1]
        cells.n_used += n_new
        places = torch.arange(first, cells.n_used, device=ids.device) - cells.starts[:, None]
        states = embedding(ids, self._decoder.embed_tokens.weight) * self._decoder.embed_scale
        states = states + self._positions[places.clamp_(min=0)]
        mask = cells.mask(n_new)
        for layer, (keys, values), heard in zip(self._layers, cells.layers, sound.layers, strict=True):
            attention, given = layer.self_attn, layer.self_attn_layer_norm(states)
            keys[:, :, first : cells.n_used] = self._by_head(attention.k_proj(given))
            values[:, :, first : cells.n_used] = self._by_head(attention.v_proj(given))
            query = self._by_head(attention.q_proj(given))
            known = keys[:, :, : cells.n_used], values[:, :, : cells.n_used]
            seen = scaled_dot_product_attention(query, *known, attn_mask=mask)
            states = states + attention.out_proj(seen.transpose(1, 2).flatten(2))
            states = states + self._heard(layer.encoder_attn, layer.encoder_attn_layer_norm(states), heard)
            given = layer.final_layer_norm(states)
            states = states + layer.fc2(layer.activation_fn(layer.fc1(given)))
        found: torch.Tensor = self._decoder.layer_norm(states)
        return found

    def _heard(self, attention: Any, given: torch.Tensor, heard: KeysValues) -> torch.Tensor:
        """What the tokens see of the sound."""
        keys, values = heard
        query = self._by_head(attention.q_proj(given)) * keys.shape[2] ** -0.5
        seen = torch.matmul(torch.softmax(torch.matmul(query, keys), dim=-1), values)
        out: torch.Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, states: torch.Tensor) -> torch.Tensor:
        """`(n, t, width)` -> `(n, heads, t, size)`."""
        return states.view(*states.shape[:2], self._n_heads, -1).transpose(1, 2)
