"""Rows of keys and values and the batch over them, for one transformers model: a `generation.decoder.DecoderContext`.

Where PyTorch finds no memory for a pass, it is computed in smaller ones; where not even one token fits, or a row cannot
grow, the batch has no room, and the engine preempts a sequence.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from backends.bnb.attention import Decoding, Pass, Stretch
from backends.bnb.dry import Breakers, breakers_of
from backends.bnb.joined_rows import NO_IMAGES, BatchImages
from backends.bnb.sampling import RowSampler
from backends.engine import LoadError
from backends.generation.decoder import FULL
from backends.pytorch import shortage

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from backends.bnb.joined_rows import JoinedRows
    from backends.bnb.kv import KvCache
    from backends.bnb.lora import LoraAdapters
    from backends.bnb.runner import Runner
    from backends.generation.decoder import DecoderModel, EmbeddingPass
    from backends.messages import KvLayout, Sampling

_NO_ROOM: Final = 1
_GOOD_BATCHES: Final = 32
"""After so many, passes may be longer again."""
_MOST_BREAKERS: Final = 8
"""Lists of texts whose tokens are kept."""
_HEAD_BYTES: Final = 64
"""Of a saved row, before its cells: its length, and room so that the cells are aligned."""

Run = tuple[int, int, int, int]
"""A slot's rows in the batch: `(slot, positions before it, first row, row behind it)`."""


class BnbContext:
    """`parallel` rows of `context` tokens."""

    def __init__(
        self,
        runner: Runner,
        cache: KvCache,
        *,
        vocabulary: DecoderModel,
        max_batch: int,
        joined: JoinedRows | None = None,
    ) -> None:
        """`joined`: where rows of images wait for a batch; None for a model that reads text alone."""
        self.layout: KvLayout = "split" if cache.fixed else "unified"
        self.forgets = cache.forgets
        self.splits = True
        self.cuts_back = True
        self.counts_rows = True
        self.one_adapter = False
        self.n_cells = cache.budget_cells
        self.max_batch = max(max_batch, cache.n_rows)
        rows = self.max_batch
        self.tokens: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.positions: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.sequences: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.outputs: NDArray[np.int8] = np.zeros(rows, dtype=np.int8)
        self._runner = runner
        self._cache = cache
        self._lengths = [0] * cache.n_rows
        self._logits: NDArray[np.float32] = np.zeros((0, vocabulary.n_vocab), dtype=np.float32)
        self._vocabulary = vocabulary
        self._breakers: dict[tuple[str, ...], Breakers] = {}
        self._row_of: dict[int, int] = {}
        """Batch rows to rows of the logits."""
        self.shortage = FULL
        self.embeddings: EmbeddingPass | None = joined
        self.stop_flag: NDArray[np.uint8] | None = None
        self._joined = joined
        self._images = NO_IMAGES
        self._adapter_numbers: dict[str, int] = {}
        self._adapter_of: NDArray[np.int64] = np.full(cache.n_rows, -1, dtype=np.int64)
        """By slot, the number of its adapter; -1: none."""
        self._most = self.max_batch
        """Tokens of one pass; halved when there is no memory for it, doubled when there was some for a while."""
        self._n_good = 0
        """Batches since the last change of that."""

    def warm_up(self, n_tokens: int = 1) -> float:
        """Compute some tokens and forget them; seconds it took. Raises LoadError."""
        n = min(n_tokens, self.max_batch, self._cache.cells_each)
        self.tokens[:n] = self.sequences[:n] = self.outputs[:n] = 0
        self.positions[:n] = range(n)
        self.outputs[n - 1] = 1
        began = time.perf_counter()
        if self.decode(n) != 0:
            raise LoadError("the KV pool has no room for a first pass", out_of_memory=True)
        took_s = time.perf_counter() - began
        self.clear(0)
        return took_s

    def take_adapters(self, adapters: LoraAdapters, numbers: Mapping[str, int]) -> None:
        """The adapters that the model computes with from now on, and their numbers by name."""
        self._runner.adapters, self._adapter_numbers = adapters, dict(numbers)

    def adapt(self, slot: int, adapter: str) -> None:
        """See `DecoderContext`."""
        self._adapter_of[slot] = self._adapter_numbers[adapter] if adapter else -1

    def decode(self, n_tokens: int, *, decoding: bool = False) -> int:
        """See `DecoderContext`."""
        self._images = NO_IMAGES
        if self._joined is not None and (waiting := self._joined.take()):
            self._images = BatchImages(waiting, n_tokens)
            self._images.write(self.positions, self.sequences, self.outputs)
            n_tokens += self._images.n_rows
        runs = list(self._runs(n_tokens))
        wanted = np.flatnonzero(self.outputs[:n_tokens])
        self.shortage = FULL
        most = self._most
        try:
            if not all(self._cache.grow(slot, past + end - begin) for slot, past, begin, end in runs):
                return _NO_ROOM
            logits = self._compute(runs, apart=decoding)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            self._most = most  # smaller ones did not help: the sequences that stay are not to pay for them
            self.shortage = f"no memory is left to go on: {shortage.told(error)}. hint: retry later, or ask for less"
            return _NO_ROOM
        self._logits = logits
        self._row_of = {int(row): index for index, row in enumerate(wanted)}
        for slot, past, begin, end in runs:
            self._lengths[slot] = past + end - begin
        return 0

    def _runs(self, n_tokens: int) -> Iterator[Run]:
        slots = self.sequences[:n_tokens]
        borders = np.flatnonzero(np.diff(slots)) + 1
        for begin, end in zip([0, *borders.tolist()], [*borders.tolist(), n_tokens], strict=True):
            slot = int(slots[begin])
            yield slot, self._lengths[slot], begin, end

    def _compute(self, runs: Sequence[Run], *, apart: bool) -> NDArray[np.float32]:
        """Logits of all outputs, in as many passes as memory makes necessary; what is computed stays.

        `apart`: each row attends as one that decodes.
        """
        found: list[NDArray[np.float32]] = []
        rest, most, longest = list(runs), self._most, 0
        while rest:
            part, behind = split(rest, most, whole=self._images.whole)
            n_rows = sum(end - begin for _, _, begin, end in part)
            logits = self._tried(part, n_rows, apart=apart)
            if logits is not None:
                found.append(logits)
                rest, longest = behind, max(longest, n_rows)
                continue
            most, self._n_good = n_rows // 2, 0
            if n_rows > longest:  # fewer rows than have just fitted fail for what stands before them
                self._most = most
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._n_good += 1
        if self._n_good >= _GOOD_BATCHES and self._most < self.max_batch:
            self._most, self._n_good = min(2 * self._most, self.max_batch), 0
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _tried(self, runs: Sequence[Run], n_rows: int, *, apart: bool) -> NDArray[np.float32] | None:
        """A pass's logits; None where there is no memory for it, and nothing of it is held any more."""
        try:
            return self._pass(runs, apart=apart)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error) or n_rows == 1 or (len(runs) == 1 and runs[0][2] in self._images.whole):
                raise
            sys.stderr.write(f"no memory for a pass of {n_rows} tokens: {shortage.told(error)}\n")
            sys.stderr.flush()
            return None

    def _pass(self, runs: Sequence[Run], *, apart: bool) -> NDArray[np.float32]:
        rows = np.concatenate([np.arange(begin, end) for _, _, begin, end in runs])
        decoding: list[Decoding] = []
        stretches: list[Stretch] = []
        at = 0
        for slot, past, begin, end in runs:
            if apart or end - begin == 1:
                decoding += [Decoding(slot, past + n, at + n) for n in range(end - begin)]
            else:
                stretches.append(Stretch(slot, past, at, end - begin, whole=begin in self._images.whole))
            at += end - begin
        return self._runner.forward(
            self.tokens[rows],
            self._images.positions(rows, self.positions),
            np.flatnonzero(self.outputs[rows]),
            Pass(self._cache, decoding, stretches),
            images=self._images.of(rows),
            adapters=self._adapter_of[self.sequences[rows]] if self._adapter_numbers else None,
        )

    def logits(self, n_outputs: int) -> NDArray[np.float32]:
        """See `DecoderContext`."""
        return self._logits[:n_outputs]

    def sampler(self, sampling: Sampling, *, prompt: Sequence[int], choice: int) -> RowSampler:
        """See `DecoderContext`."""
        return RowSampler(
            sampling,
            prompt=prompt,
            choice=choice,
            row_of=lambda row: self._logits[self._row_of[row]],
            breakers=self._breakers_of,
        )

    def _breakers_of(self, texts: Sequence[str]) -> Breakers:
        """Kept, because the whole vocabulary is looked through."""
        key = tuple(texts)
        if key not in self._breakers:
            if len(self._breakers) >= _MOST_BREAKERS:
                self._breakers.clear()
            self._breakers[key] = breakers_of(key, self._vocabulary)
        return self._breakers[key]

    def clear(self, slot: int) -> None:
        """Drop everything a row holds."""
        self._lengths[slot] = 0
        self._cache.shrink(slot, 0)

    def least(self, slot: int) -> int:
        """See `DecoderContext`."""
        return self._cache.least(self._lengths[slot])

    def least_shared(self, slot: int) -> int:
        """See `DecoderContext`."""
        return self.least(slot)

    def trim(self, slot: int, length: int) -> bool:
        """See `DecoderContext`."""
        if not self.least(slot) <= length <= self._lengths[slot]:
            return False
        self._lengths[slot] = length
        self._cache.shrink(slot, length)
        return True

    def share(self, source: int, target: int, length: int, *, checkpoint: NDArray[np.uint8] | None = None) -> bool:
        """See `DecoderContext`."""
        before = self._lengths[source]
        least = 0 if checkpoint is not None else self.least(source)
        if self.layout == "unified" or not least <= length <= before:
            return False  # a copy takes cells of its own, which a pool counts as shared
        self._cache.copy(source, target, length, source_length=before)
        self._lengths[target] = length
        return checkpoint is None or self.go_back(target, checkpoint, length)

    def state_bytes(self, slot: int, *, partial: bool = False) -> int:
        """See `DecoderContext`."""
        parts = self._cache.parts(slot, self._lengths[slot], windowed_only=partial)
        return _HEAD_BYTES + sum(part.nbytes for part in parts)

    def save_into(self, slot: int, target: NDArray[np.uint8], *, partial: bool = False) -> bool:
        """See `DecoderContext`."""
        length = self._lengths[slot]
        if target.size != self.state_bytes(slot, partial=partial):
            return False
        target[:_HEAD_BYTES] = 0
        target[:8] = np.frombuffer(length.to_bytes(8, "little"), dtype=np.uint8)
        at = _HEAD_BYTES
        for part in self._cache.parts(slot, length, windowed_only=partial):
            flat = part.contiguous().cpu().view(torch.uint8).reshape(-1).numpy()
            target[at : at + flat.size] = flat
            at += flat.size
        return True

    def save(self, slot: int) -> NDArray[np.uint8] | None:
        """See `DecoderContext`."""
        state = np.empty(self.state_bytes(slot), dtype=np.uint8)
        return state if self.save_into(slot, state) else None

    def restore(self, slot: int, state: NDArray[np.uint8]) -> bool:
        """See `DecoderContext`."""
        length = _length_of(state)
        if not 0 <= length <= self._cache.cells_each or not self._has_room(slot, length):
            return False
        if not _read(state, self._cache.parts(slot, length)):
            self.clear(slot)
            return False
        self._lengths[slot] = length
        return True

    def go_back(self, slot: int, checkpoint: NDArray[np.uint8], length: int) -> bool:
        """See `DecoderContext`."""
        fits = _length_of(checkpoint) == length <= self._lengths[slot]
        if not fits or not _read(checkpoint, self._cache.parts(slot, length, windowed_only=True)):
            self.clear(slot)
            return False
        self._lengths[slot] = length
        self._cache.shrink(slot, length)
        return True

    def _has_room(self, slot: int, length: int) -> bool:
        try:
            return self._cache.grow(slot, length)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            return False

    def close(self) -> None:
        """Free the cells."""
        self._cache.layers.clear()


def _length_of(state: NDArray[np.uint8]) -> int:
    """Positions that a saved state says it has; -1 for what is none."""
    return int.from_bytes(state[:8].tobytes(), "little") if state.size >= _HEAD_BYTES else -1


def _read(state: NDArray[np.uint8], parts: Sequence[torch.Tensor]) -> bool:
    """Write a saved state into the cells it belongs to; False where it is not of their size."""
    if state.size != _HEAD_BYTES + sum(part.nbytes for part in parts):
        return False
    at = _HEAD_BYTES
    for part in parts:
        raw = torch.from_numpy(np.array(state[at : at + part.nbytes]))
        part.copy_(raw.view(part.dtype).view(part.shape))
        at += part.nbytes
    return True


def split(runs: Sequence[Run], most: int, *, whole: Container[int] = ()) -> tuple[list[Run], list[Run]]:
    """The first `most` rows of runs and those behind them, in their order; the run in between is cut.

    Runs that begin at a `whole` row are not cut: one that is longer than `most` is a part of its own.
    """
    part: list[Run] = []
    for index, (slot, past, begin, end) in enumerate(runs):
        n_rows = min(most, end - begin)
        if n_rows < end - begin and begin in whole:
            return (part, list(runs[index:])) if part else ([runs[index]], list(runs[index + 1 :]))
        part.append((slot, past, begin, begin + n_rows))
        most -= n_rows
        if most == 0:
            cut = [(slot, past + n_rows, begin + n_rows, end)] if begin + n_rows < end else []
            return part, [*cut, *runs[index + 1 :]]
    return part, []
