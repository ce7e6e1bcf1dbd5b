"""Which sequences have their cells in the KV pool, and where the first positions of a prompt come from.

A prompt begins with the longest prefix that a running sequence or the store already holds; what leaves the pool
is kept in the store. When a unified pool runs full a sequence is preempted, and none fails.

A model that forgets (a sliding window, a running state) cannot be cut back to a prefix. Its prompts stop where others
are likely to part from them, and a checkpoint is kept there.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Final

from backends.generation.cells import Cells
from backends.generation.sequence import Phase, Sequence
from backends.generation.starts import Start, Starts
from backends.generation.tiles import TILE
from backends.prefix.index import PrefixIndex, common
from backends.prefix.store import LEAST_TOKENS, PrefixStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from backends.generation.decoder import DecoderContext
    from backends.generation.pace import Pace
    from backends.generation.sequence import GenerationRequest
    from backends.prefix.entry_files import EntryFile
    from backends.prefix.keys import Keys

GROWTH_TOKENS: Final = 64
"""Room that a sequence needs beyond its prompt to be let in; more is found, or made, when it gets there."""
_CACHED_TEXTS: Final = 8
_CACHED_TOKENS: Final = 8192
"""So many texts and tokens of the store a new sequence looks through for what may come."""
_BEFORE_TOKENS: Final = 3
"""Of a text before it parts from a prompt, so that it is found by what stands there."""


class Verdict(Enum):
    """What became of a sequence that waits."""

    PLACED = "it has its cells"
    FOLLOWS = "a running sequence is about to have computed what it begins with"
    NO_ROOM = "the pool has no room for it"


class Residency:
    """See the module's text."""

    def __init__(
        self,
        context: DecoderContext,
        *,
        store: PrefixStore | None,
        pace: Pace,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self.store = store
        """Of cached prefixes; None: nothing is kept."""
        self._pace = pace
        self._clock = clock
        self._index: PrefixIndex[Sequence] = PrefixIndex()
        self._resident: set[Sequence] = set()
        self.cells: Cells[Sequence] = Cells(context.n_cells)
        """Who holds how many; the engine counts each computed position there."""
        self.pooled = context.layout == "unified"
        """All sequences share the cells of one pool."""
        self._starts = Starts(context, self._index, store, pace)

    @property
    def room(self) -> int | None:
        """Cells that are free for any; None where every sequence has cells of its own."""
        return self.cells.free if self.pooled else None

    def keep(self, max_bytes: int) -> None:
        """Hold at most so many bytes in host memory; who waited there to go on computes again what had to leave."""
        if self.store is not None:
            self.store.limit(max_bytes, now_s=self._clock())

    # Coming

    def admit(self, sequence: Sequence) -> Verdict:
        """Give a waiting sequence its cells, with what is already computed of its target."""
        if sequence.entry is not None:
            return self._bring_back(sequence)
        running, kept = self._starts.running(sequence), self._starts.kept(sequence, room=self.room)
        start = kept
        if running is not None and running.n_tokens > kept.n_tokens + LEAST_TOKENS:
            source = running.source
            assert source is not None
            if source.n_past < running.n_tokens:
                if not source.n_past < source.pause_at < running.n_tokens:
                    source.pause_at = running.n_tokens
                return Verdict.FOLLOWS
            start = running
        n_from_pool = start.n_tokens if start.source is not None else 0
        if not self._has_room(sequence, sequence.target.size - n_from_pool):
            return Verdict.NO_ROOM
        if start.source is not None and self._share(start, sequence):
            self.cells.share(start.source, sequence, start.n_tokens)
            self._begin(sequence, start.n_tokens)
            return Verdict.PLACED
        self._context.clear(sequence.slot)
        self._begin(sequence, self._take(sequence, kept))
        self.cells.grow(sequence, sequence.n_past)
        if kept.checkpoint is None and kept.entry is not None and sequence.n_past == kept.entry.label.n_tokens:
            self._take_partial(sequence)  # then the next whole state can take this one's place
        return Verdict.PLACED

    def fork(self, source: Sequence, target: Sequence) -> bool:
        """Let a new sequence begin with all that `source` has computed; False where it has to wait and compute."""
        if not self._context.share(source.slot, target.slot, self._length(source, source.n_past)):
            self._context.clear(target.slot)
            return False
        self.cells.share(source, target, source.n_past)
        self._begin(target, source.n_past)
        return True

    def remember(self, source: Sequence) -> None:
        """Keep the prompt that `source` has computed for choices of its job that find no slot yet."""
        if self.store is not None:
            source.request.entry = self._keep(source, pinned=True)

    def cached_texts(self, sequence: Sequence) -> list[list[int]]:
        """What the store has seen of the sequence's domain, the newest first: each text from where its prompt parts
        from it.
        """
        if self.store is None:
            return []
        texts, keys, n_left = [], sequence.keys, _CACHED_TOKENS
        for text in self.store.newest(_CACHED_TEXTS, domain=sequence.request.domain):
            n_known = max(0, common(text, keys) - _BEFORE_TOKENS)
            part = text[n_known : n_known + n_left].tolist()
            part = part[: next((at for at, key in enumerate(part) if key < 0), len(part))]
            if len(part) > 2 * _BEFORE_TOKENS:
                texts.append(part)
                n_left -= len(part)
        return texts

    def forget(self, request: GenerationRequest) -> None:
        """No choice of a job needs its cached prefixes any more."""
        if self.store is not None and request.entry is not None:
            self.store.drop(request.entry)
            request.entry = None

    def _share(self, start: Start, sequence: Sequence) -> bool:
        """Begin an empty slot with a running sequence's positions."""
        assert start.source is not None
        length = self._length(sequence, start.n_tokens)
        if start.checkpoint is None:
            return self._context.share(start.source.slot, sequence.slot, length)
        assert self.store is not None
        checkpoint = self.store.open(start.checkpoint, now_s=self._clock())
        return checkpoint is not None and self._context.share(
            start.source.slot, sequence.slot, length, checkpoint=checkpoint
        )

    def _length(self, sequence: Sequence, n_rows: int) -> int:
        """What the context calls a prefix of so many rows."""
        return n_rows if self._context.counts_rows else sequence.request.layout.position(n_rows)

    def _take(self, sequence: Sequence, kept: Start) -> int:
        """Restore what was found into the sequence's empty slot; how many positions that gave."""
        if self.store is None:
            return 0
        if sequence.request.entry is not None and not sequence.generated:
            state, last = self.store.open(sequence.request.entry, now_s=self._clock()), sequence.target.size - 1
            if state is None:
                sequence.request.entry = None
            elif self._restore(sequence, state, last):
                return last
        if kept.entry is None:
            return 0
        room = self.room
        if room is not None and kept.entry.label.n_tokens > room:  # it comes back whole before it is cut
            return 0
        state = self.store.open(kept.entry, now_s=self._clock())
        if state is None:
            return 0
        if kept.checkpoint is None:
            return kept.n_tokens if self._restore(sequence, state, kept.n_tokens) else 0
        checkpoint = self.store.open(kept.checkpoint, now_s=self._clock())
        if checkpoint is None or not self._context.restore(sequence.slot, state):
            return 0
        length = self._length(sequence, kept.n_tokens)
        return kept.n_tokens if self._context.go_back(sequence.slot, checkpoint, length) else 0

    def _restore(self, sequence: Sequence, state: NDArray[np.uint8], n_tokens: int) -> bool:
        """Put the first tokens of a state into the sequence's slot; False, and it is empty, where that cannot be."""
        length = self._length(sequence, n_tokens)
        if self._context.restore(sequence.slot, state) and self._context.trim(sequence.slot, length):
            return True
        self._context.clear(sequence.slot)
        return False

    def _bring_back(self, sequence: Sequence) -> Verdict:
        """Put a sequence that was preempted where it was."""
        assert sequence.entry is not None
        assert self.store is not None
        if not self._has_room(sequence, sequence.entry.label.n_tokens):
            return Verdict.NO_ROOM
        entry, sequence.entry = sequence.entry, None
        state = self.store.open(entry, now_s=self._clock())
        restored = state is not None and self._context.restore(sequence.slot, state)
        self.store.drop(entry)
        if not restored:
            self._compute_again(sequence)
            return self.admit(sequence)
        self._begin(sequence, entry.label.n_tokens)
        self.cells.grow(sequence, sequence.n_past)
        return Verdict.PLACED

    def _begin(self, sequence: Sequence, n_past: int) -> None:
        sequence.n_past = n_past
        sequence.phase = Phase.PREFILL if sequence.token < 0 else Phase.DECODE
        self._resident.add(sequence)
        sequence.stops = self._stops(sequence)
        self._index.add(sequence, sequence.keys, domain=sequence.request.domain)

    def _stops(self, sequence: Sequence) -> tuple[int, ...]:
        """Where a prompt that begins now stops for checkpoints: at its end, and within it whole tiles from here.

        One is where it parts from what is known: who comes third will often part there too.
        """
        request, begin = sequence.request, sequence.n_past
        if not self._keeps_checkpoints(request) or not request.borders:
            return ()
        *inner, end = request.borders
        cut = request.layout.cut
        places = {cut(begin + (at - begin) // TILE * TILE) for at in (*inner, self._parts_at(request))}
        stops = {at for at in places if begin < at < end} | ({end} if end - begin >= LEAST_TOKENS else set())
        return tuple(sorted(stops))

    def _parts_at(self, request: GenerationRequest) -> int:
        """How many tokens of a prompt a running sequence or a kept state begins with, of use or not."""
        keys = request.layout.keys(request.prompt)
        running = next(self._index.matches(keys, domain=request.domain), None)
        kept = 0 if self.store is None else self.store.longest(keys, domain=request.domain)
        return max(kept, 0 if running is None else running.n_tokens)

    def _keeps_checkpoints(self, request: GenerationRequest) -> bool:
        keeps = self.store is not None and self._context.forgets
        return keeps and request.job.cache_prompt and not request.scoring

    def take_checkpoint(self, sequence: Sequence) -> None:
        """A prompt has come to a place where others may begin: keep what it cannot be cut back to later."""
        if not self._keeps_checkpoints(sequence.request):
            return
        if not self._context.splits:
            self._keep(sequence, pinned=False)
            return
        assert self.store is not None
        job, keys = sequence.request.job, self._computed(sequence)
        if not self.store.covers(keys, domain=job.cache_domain, now_s=self._clock()):
            self._take_partial(sequence)

    def _take_partial(self, sequence: Sequence) -> None:
        if not self._keeps_checkpoints(sequence.request) or not self._context.splits:
            return
        assert self.store is not None
        job, keys = sequence.request.job, self._computed(sequence)
        n_tokens, domain = int(keys.size), job.cache_domain
        entry = next(self.store.checkpoints(keys, domain=domain, most=n_tokens), None)
        if entry is None or entry.label.n_tokens < n_tokens:
            since = max((one.label.n_tokens for one in sequence.checkpoints), default=0)
            entry = self.store.put(
                keys,
                self._context.state_bytes(sequence.slot, partial=True),
                lambda target: self._context.save_into(sequence.slot, target, partial=True),
                cost_us=lambda n_shared: self._pace.prefill_us(n := max(n_shared, since), n_tokens - n),
                now_s=self._clock(),
                domain=domain,
                session=job.session,
                least=n_tokens,
                partial=True,
            )
        if entry is not None and entry not in sequence.checkpoints:
            entry.n_running += 1
            sequence.checkpoints.append(entry)

    def _has_room(self, sequence: Sequence, n_tokens: int) -> bool:
        """Room for so many cells and a step of growth beside what those inside still need for their prompts."""
        if not self.pooled:
            return True
        if not self._resident:
            return True
        promised = sum(max(0, other.target.size - other.n_past) for other in self._resident)
        to_come = sequence.request.limit - sequence.n_generated
        return self.cells.free - promised >= n_tokens + min(GROWTH_TOKENS, max(1, to_come))

    # Staying

    def victim(self, among: Iterable[Sequence]) -> Sequence | None:
        """Which sequence is preempted: the youngest of the lowest priority; None when no other would stay."""
        inside = [sequence for sequence in among if sequence in self._resident]
        if len(inside) < 2:
            return None
        return min(inside, key=lambda sequence: (sequence.request.job.priority, -sequence.order))

    def background_victim(self, sequence: Sequence) -> Sequence | None:
        """Which sequence is preempted for one that has no time: the youngest that has; None where there is none."""
        inside = () if sequence.background else (one for one in self._resident if one.background)
        return max(inside, key=lambda one: one.order, default=None)

    def cut_back(self, sequence: Sequence, n_rows: int) -> None:
        """Take back the last rows of a sequence: what was drafted there did not come true. Raises RuntimeError."""
        sequence.n_past -= n_rows
        self.cells.grow(sequence, -n_rows)
        self.take_back(sequence)

    def take_back(self, sequence: Sequence) -> None:
        """Take back what an interrupted pass has computed. Raises RuntimeError."""
        if not self._context.trim(sequence.slot, self._length(sequence, sequence.n_past)):
            raise RuntimeError(f"slot {sequence.slot} cannot be cut back to {sequence.n_past} of its rows")

    # Leaving

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's cells away; what it has computed waits in the store, or is computed again."""
        sequence.request.preemptions += 1
        if self.store is not None and sequence.n_past:
            sequence.entry = self._keep(sequence, pinned=True)
        self._leave(sequence)
        if sequence.entry is None:
            self._compute_again(sequence)

    def release(self, sequence: Sequence) -> None:
        """A sequence has ended: what it has computed is kept for prompts that begin like it."""
        if sequence.entry is not None and self.store is not None:
            self.store.drop(sequence.entry)
            sequence.entry = None
        if sequence in self._resident and self.store is not None and sequence.request.job.cache_prompt:
            self._keep(sequence, pinned=False)
        self._leave(sequence)
        for entry in sequence.checkpoints:
            entry.n_running -= 1
        if self.store is not None:
            self.store.let_go(sequence.checkpoints)

    def _keep(self, sequence: Sequence, *, pinned: bool) -> EntryFile | None:
        assert self.store is not None
        keys = self._computed(sequence)
        now_s, job = self._clock(), sequence.request.job
        if not pinned and self.store.covers(keys, domain=job.cache_domain, now_s=now_s):
            return None
        return self.store.put(
            keys,
            self._context.state_bytes(sequence.slot),
            lambda target: self._context.save_into(sequence.slot, target),
            cost_us=lambda n_shared: self._pace.prefill_us(n_shared, int(keys.size) - n_shared),
            now_s=now_s,
            domain=sequence.request.domain if pinned else job.cache_domain,
            session=job.session,
            least=self._context.least(sequence.slot),
            pinned=pinned,
        )

    def _leave(self, sequence: Sequence) -> None:
        self._index.remove(sequence)
        self._resident.discard(sequence)
        self.cells.drop(sequence)
        self._context.clear(sequence.slot)
        sequence.phase = Phase.WAITING

    @staticmethod
    def _compute_again(sequence: Sequence) -> None:
        sequence.target = sequence.history
        sequence.token = -1
        sequence.n_past = 0

    @staticmethod
    def _computed(sequence: Sequence) -> Keys:
        return sequence.request.layout.keys(sequence.history[: sequence.n_past])
