"""Attention of one pass over rows of the cache: what transformers' models call instead of their own.

A pass is flat: `(1, tokens)`, one token of each decoding row and stretches of prompts. Every row attends by itself, and
prompts in units of `UNIT` positions that are always computed whole, so that a token's result depends on its own row
alone, never on who else is in the pass or where a prompt was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.bnb.kv import KvCache, LayerCache

UNIT = 32
"""Prompt positions whose attention is computed at once."""
NAME = "onecard"
"""Under which transformers knows `attend`."""
_HARMLESS = frozenset(
    {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "cache_position", "position_embeddings",
     "output_hidden_states", "return_dict", "token_type_ids", "output_router_logits", "logits_to_keep"}
)  # fmt: skip


class UnsupportedAttentionError(Exception):
    """The model asks for a kind of attention that is not computed here; the message names it."""


class Seen(NamedTuple):
    """What one layer asks of a cache."""

    n_heads: int
    key_size: int
    value_size: int
    window: int | None


@dataclass(slots=True)
class Survey:
    """A pass that computes nothing and finds out which layers attend, and how."""

    found: dict[int, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring positions of one row: `count` tokens of the pass from `at` on, behind `past` positions."""

    row: int
    past: int
    at: int
    count: int
    whole: bool = False
    """They see each other, those behind too."""

    def units(self) -> Iterator[tuple[int, int]]:
        """Positions `(begin, end)`, each pair inside one unit."""
        begin, stop = self.past, self.past + self.count
        while begin < stop:
            end = min(stop, (begin // UNIT + 1) * UNIT)
            yield begin, end
            begin = end


class Decoding(NamedTuple):
    """One token of one row."""

    row: int
    position: int
    at: int


@dataclass(slots=True)
class Pass:
    """Who computes what in one forward pass."""

    cache: KvCache
    decoding: list[Decoding]
    stretches: list[Stretch]
    _kept: dict[Any, Any] = field(default_factory=dict)

    def places(self, ring: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, cells in a layer with such a ring, and places in the pass of the decoding tokens, `(n,) int64` each."""
        key = ("places", ring)
        if key not in self._kept:
            columns = zip(*((d.row, d.position % ring, d.at) for d in self.decoding), strict=True)
            self._kept[key] = tuple(torch.tensor(column, device=device) for column in columns)
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._kept[key]
        return found

    def mask(
        self,
        begin: int,
        n: int,
        *,
        first: int,
        n_cells: int,
        layer: LayerCache,
        last: int,
        form: MaskForm,
        whole: bool = False,
    ) -> torch.Tensor:
        """`(repeats * n, n_cells)`: which cells from `first` on the positions from `begin` on see; `last` is newest.

        `whole`: these positions all see each other.
        """
        turned = last >= layer.ring
        key = (begin, n, first, n_cells, layer.window, last if turned else -1, form, whole)
        if key not in self._kept:
            device = layer.keys[0].device
            position = torch.arange(first, first + n_cells, device=device)
            if turned:
                position = last - (last - position) % layer.ring
            seen = visible(position, torch.arange(begin, begin + n, device=device)[:, None], layer.window)
            if whole:
                seen = seen | ((position >= begin) & (position < begin + n))
            self._kept[key] = form.of(seen)
        found: torch.Tensor = self._kept[key]
        return found


class MaskForm(NamedTuple):
    """How a mask is handed over: made once for all layers, because scaled_dot_product_attention would in each."""

    repeats: int
    """Heads that share their keys stand below each other."""
    dtype: torch.dtype | None
    """What is added to the scores, in that type; None for `bool`, which says what is seen."""

    def of(self, seen: torch.Tensor) -> torch.Tensor:
        """From `(n, n_cells) bool`."""
        seen = seen.repeat(self.repeats, 1) if self.repeats > 1 else seen
        if self.dtype is None:
            return seen
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def visible(cell: torch.Tensor, position: torch.Tensor, window: int | None) -> torch.Tensor:
    """Whether a position sees a cell that holds another position; negative cells hold nothing."""
    seen = (cell <= position) & (cell >= 0)
    return seen if window is None else seen & (cell > position - window)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    work: Pass | Survey | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Write the pass's keys and values into the cache and attend over it; see transformers' `AttentionInterface`.

    `query` is `(1, heads, tokens, size)`, `key` and `value` have the key-value heads. Raises UnsupportedAttentionError.
    """
    if work is None:
        raise UnsupportedAttentionError("its layers do not hand on what a pass is about")
    index = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(work, Survey):
        strange = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
        if strange or attention_mask is not None:
            raise UnsupportedAttentionError(f"its attention takes {', '.join(strange) or 'a mask of its own'}")
        work.found[index] = Seen(key.shape[1], key.shape[-1], value.shape[-1], sliding_window)
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[-1])), None
    layer = work.cache.layers[index]
    query, key, value = query[0], key[0], value[0]
    out = query.new_empty((query.shape[0], query.shape[1], value.shape[-1]))
    form = MaskForm(query.shape[0] // key.shape[0], query.dtype if softcap is None else None)
    compute = _Compute(scaling, softcap, key.shape[0], form)
    if work.decoding:
        _decode(work, layer, query, key, value, compute, out)
    for stretch in work.stretches:
        _prefill(work, layer, stretch, query, key, value, compute, out)
    return out.transpose(0, 1)[None], None


@dataclass(frozen=True, slots=True)
class _Compute:
    """Attention of some queries of one row, all heads of a group against their keys at once."""

    scaling: float | None
    softcap: float | None
    n_groups: int
    form: MaskForm
    """Of the masks it takes."""

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """`(heads, n, size)` from queries of that shape, `(groups, cells, size)`, and a mask of its form or None."""
        n_heads, n, size = query.shape
        asked = query.reshape(1, self.n_groups, n_heads // self.n_groups * n, size)
        if self.softcap is None:
            found = scaled_dot_product_attention(asked, keys[None], values[None], attn_mask=mask, scale=self.scaling)
        else:
            found = capped(asked, keys[None], values[None], mask, scaling=self.scaling, softcap=self.softcap)
        return found.view(n_heads, n, -1)


def capped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores are `softcap * tanh(score / softcap)` (Gemma 2, arXiv 2408.00118)."""
    scores = torch.matmul(query, keys.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(query.dtype), values)


def _decode(
    work: Pass,
    layer: LayerCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    compute: _Compute,
    out: torch.Tensor,
) -> None:
    if layer.all_keys is not None and layer.all_values is not None:
        rows, cells, at = work.places(layer.ring, key.device)
        layer.all_keys[rows, :, cells] = key[:, at].transpose(0, 1)
        layer.all_values[rows, :, cells] = value[:, at].transpose(0, 1)
    else:
        for row, position, place in work.decoding:
            layer.keys[row][:, position % layer.ring] = key[:, place]
            layer.values[row][:, position % layer.ring] = value[:, place]
    for row, position, place in work.decoding:
        keys, values, mask = layer.keys[row], layer.values[row], None
        if position < layer.ring:
            first = 0 if layer.window is None else max(0, position + 1 - layer.window)
            keys, values = keys[:, first : position + 1], values[:, first : position + 1]
        else:
            mask = work.mask(position, 1, first=0, n_cells=layer.ring, layer=layer, last=position, form=compute.form)
        out[:, place : place + 1] = compute(query[:, place : place + 1], keys, values, mask)


def _prefill(
    work: Pass,
    layer: LayerCache,
    stretch: Stretch,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    compute: _Compute,
    out: torch.Tensor,
) -> None:
    stop, at = stretch.past + stretch.count, stretch.at
    keys, values = layer.keys[stretch.row], layer.values[stretch.row]
    new_keys, new_values = key[:, at : at + stretch.count], value[:, at : at + stretch.count]
    if stop <= layer.ring:
        keys[:, stretch.past : stop], values[:, stretch.past : stop] = new_keys, new_values
    else:
        cells = torch.arange(stretch.past, stop, device=key.device) % layer.ring
        keys[:, cells], values[:, cells] = new_keys, new_values
    if stretch.whole:
        n_cells = min(stop, layer.ring)
        mask = work.mask(
            stretch.past,
            stretch.count,
            first=0,
            n_cells=n_cells,
            layer=layer,
            last=stop - 1,
            form=compute.form,
            whole=True,
        )
        found = compute(query[:, at : at + stretch.count], keys[:, :n_cells], values[:, :n_cells], mask)
        out[:, at : at + stretch.count] = found
        return
    for begin, end in stretch.units():
        base = begin // UNIT * UNIT
        asked = query[:, at : at + end - begin]
        if end - begin < UNIT:
            whole = query.new_zeros((query.shape[0], UNIT, query.shape[-1]))
            whole[:, begin - base : end - base] = asked
            asked = whole
        if stop > layer.ring:
            mask = work.mask(base, UNIT, first=0, n_cells=layer.ring, layer=layer, last=stop - 1, form=compute.form)
            found = compute(asked, keys, values, mask)
        else:
            first = 0 if layer.window is None else max(0, base + 1 - layer.window)
            last = min(base + UNIT, keys.shape[1])
            mask = work.mask(
                base, UNIT, first=first, n_cells=last - first, layer=layer, last=last - 1, form=compute.form
            )
            found = compute(asked, keys[:, first:last], values[:, first:last], mask)
        out[:, at : at + end - begin] = found[:, begin - base : end - base]
        at += end - begin


def install() -> None:
    """Tell transformers of `attend`. It has no mask of its own under that name, so models make none."""
    AttentionInterface.register(NAME, attend)
