"""Which sequences have their cells in the KV pool, and where the first positions of a prompt come from.

A prompt begins with the longest prefix that a running sequence or the store already holds; whoever leaves the pool is
kept in the store. When a unified pool runs full somebody is set back, and nobody fails.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Final

from backends.generation.cells import Cells
from backends.generation.sequence import Phase, Sequence
from backends.prefix.index import PrefixIndex
from backends.prefix.store import LEAST_TOKENS, Found, PrefixStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from backends.generation.decoder import DecoderContext, DecoderModel
    from backends.generation.pace import Pace
    from backends.generation.sequence import Request
    from backends.prefix.shelf import Box

GROWTH_TOKENS: Final = 64
"""Room that a sequence needs beyond its prompt to be let in; more is found, or made, when it gets there."""


class Verdict(Enum):
    """What became of a sequence that waits."""

    PLACED = "it has its cells"
    FOLLOWS = "a running sequence is about to have computed what it begins with"
    NO_ROOM = "the pool has no room for it"


class Residency:
    """See the module's text."""

    def __init__(
        self,
        model: DecoderModel,
        context: DecoderContext,
        *,
        store: PrefixStore | None,
        pace: Pace,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._store = store
        self._pace = pace
        self._clock = clock
        self._cuttable = not model.carries_state
        self._index: PrefixIndex[Sequence] = PrefixIndex()
        self._resident: set[Sequence] = set()
        self._cells: Cells[Sequence] = Cells(context.n_cells)
        self._pooled = context.layout == "unified"

    @property
    def room(self) -> int | None:
        """Cells that are free for whoever; None where every sequence has cells of its own."""
        return self._cells.free if self._pooled else None

    @property
    def n_used(self) -> int:
        """Cells in use."""
        return self._cells.used

    @property
    def n_total(self) -> int:
        """Cells in all."""
        return self._cells.total

    @property
    def store_bytes(self) -> int:
        """What the store takes in host memory."""
        return self._store.n_bytes if self._store is not None else 0

    def keep(self, max_bytes: int) -> None:
        """Hold at most so many bytes in host memory; who waited there to go on computes again what had to leave."""
        if self._store is not None:
            self._store.limit(max_bytes, now_s=self._clock())

    # Coming

    def admit(self, sequence: Sequence) -> Verdict:
        """Give a waiting sequence its cells, with what is already computed of its target."""
        if sequence.box is not None:
            return self._bring_back(sequence)
        shared = self._best_running(sequence)
        if shared is not None and not self._pooled:
            shared = shared[0], self._pace.begin_at(shared[1], sequence.target.size)
        stored = self._best_stored(sequence)
        n_stored = stored.n_tokens if stored is not None else 0
        if shared is not None:
            source, n_shared = shared
            if min(n_shared, source.n_past) <= n_stored + LEAST_TOKENS and n_shared <= n_stored + LEAST_TOKENS:
                shared = None
            elif source.n_past < n_shared:
                if not source.n_past < source.pause_at < n_shared:
                    source.pause_at = n_shared
                return Verdict.FOLLOWS
        n_from_pool = shared[1] if shared is not None else 0
        if not self._has_room(sequence, sequence.target.size - n_from_pool):
            return Verdict.NO_ROOM
        if shared is not None and self._context.share(shared[0].slot, sequence.slot, shared[1]):
            self._cells.share(shared[0], sequence, shared[1])
            self._begin(sequence, shared[1])
            return Verdict.PLACED
        self._context.clear(sequence.slot)
        self._begin(sequence, self._take(sequence, stored))
        self._cells.grow(sequence, sequence.n_past)
        return Verdict.PLACED

    def fork(self, source: Sequence, target: Sequence) -> bool:
        """Let a new sequence begin with all that `source` has computed; False where it has to wait and compute."""
        if not self._context.share(source.slot, target.slot, source.n_past):
            self._context.clear(target.slot)
            return False
        self._cells.share(source, target, source.n_past)
        self._begin(target, source.n_past)
        return True

    def remember(self, source: Sequence) -> None:
        """Keep the prompt that `source` has computed for choices of its job that find no slot yet."""
        if self._store is not None:
            source.request.box = self._keep(source, pinned=True)

    def forget(self, request: Request) -> None:
        """No choice of a job needs its computed prompt any more."""
        if self._store is not None and request.box is not None:
            self._store.drop(request.box)
            request.box = None

    def _best_running(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        if not self._cuttable or sequence.request.scoring:
            return None
        most = sequence.target.size - 1
        for match in self._index.matches(sequence.target, domain=sequence.request.domain):
            n_tokens = min(match.n_tokens, most)
            if n_tokens >= LEAST_TOKENS and self._context.least(match.holder.slot) <= n_tokens:
                return match.holder, n_tokens
        return None

    def _best_stored(self, sequence: Sequence) -> Found | None:
        job = sequence.request.job
        if self._store is None or not job.cache_prompt or sequence.request.scoring:
            return None
        most = sequence.target.size - 1
        return next(self._store.find(sequence.target, domain=job.cache_domain, session=job.session, most=most), None)

    def _take(self, sequence: Sequence, stored: Found | None) -> int:
        """Restore what was found into the sequence's empty slot; how many positions that gave."""
        if self._store is None:
            return 0
        if sequence.request.box is not None and not sequence.generated:
            state, last = self._store.open(sequence.request.box, now_s=self._clock()), sequence.target.size - 1
            if state is None:
                sequence.request.box = None
            elif self._restore(sequence, state, last):
                return last
        if stored is None:
            return 0
        room = self.room
        if room is not None and stored.box.label.n_tokens > room:  # it comes back whole before it is cut
            return 0
        state = self._store.open(stored.box, now_s=self._clock())
        if state is None or not self._restore(sequence, state, stored.n_tokens):
            return 0
        return stored.n_tokens

    def _restore(self, sequence: Sequence, state: NDArray[np.uint8], n_tokens: int) -> bool:
        """Put the first tokens of a state into the sequence's slot; False, and it is empty, where that cannot be."""
        if self._context.restore(sequence.slot, state) and self._context.trim(sequence.slot, n_tokens):
            return True
        self._context.clear(sequence.slot)
        return False

    def _bring_back(self, sequence: Sequence) -> Verdict:
        """Put a sequence that was set back where it was."""
        assert sequence.box is not None
        assert self._store is not None
        if not self._has_room(sequence, sequence.box.label.n_tokens):
            return Verdict.NO_ROOM
        box, sequence.box = sequence.box, None
        state = self._store.open(box, now_s=self._clock())
        restored = state is not None and self._context.restore(sequence.slot, state)
        self._store.drop(box)
        if not restored:
            self._compute_again(sequence)
            return self.admit(sequence)
        self._begin(sequence, box.label.n_tokens)
        self._cells.grow(sequence, sequence.n_past)
        return Verdict.PLACED

    def _begin(self, sequence: Sequence, n_past: int) -> None:
        sequence.n_past = n_past
        sequence.phase = Phase.PREFILL if sequence.token < 0 else Phase.DECODE
        self._resident.add(sequence)
        self._index.add(sequence, sequence.target, domain=sequence.request.domain)

    def _has_room(self, sequence: Sequence, n_tokens: int) -> bool:
        """Room for so many cells and a step of growth beside what those inside still need for their prompts."""
        if not self._pooled:
            return True
        if not self._resident:
            return True
        promised = sum(max(0, other.target.size - other.n_past) for other in self._resident)
        to_come = sequence.request.limit - sequence.n_generated
        return self._cells.free - promised >= n_tokens + min(GROWTH_TOKENS, max(1, to_come))

    # Staying

    def grow(self, sequence: Sequence, n_tokens: int) -> None:
        """So many more positions of a sequence are computed."""
        sequence.n_past += n_tokens
        self._cells.grow(sequence, n_tokens)

    def victim(self, among: Iterable[Sequence]) -> Sequence | None:
        """Who is set back when there is no room: the youngest of the lowest priority; None when nobody would stay."""
        inside = [sequence for sequence in among if sequence in self._resident]
        if len(inside) < 2:
            return None
        return min(inside, key=lambda sequence: (sequence.request.job.priority, -sequence.order))

    # Leaving

    def set_back(self, sequence: Sequence) -> None:
        """Take a sequence's cells away; what it has computed waits in the store, or is computed again."""
        sequence.request.preemptions += 1
        if self._store is not None and sequence.n_past:
            sequence.box = self._keep(sequence, pinned=True)
        self._leave(sequence)
        if sequence.box is None:
            self._compute_again(sequence)

    def release(self, sequence: Sequence) -> None:
        """A sequence has ended: what it has computed is kept for whoever begins like it."""
        if sequence.box is not None and self._store is not None:
            self._store.drop(sequence.box)
            sequence.box = None
        if sequence in self._resident and self._store is not None and sequence.request.job.cache_prompt:
            self._keep(sequence, pinned=False)
        self._leave(sequence)

    def _keep(self, sequence: Sequence, *, pinned: bool) -> Box | None:
        assert self._store is not None
        tokens = self._computed(sequence)
        now_s, job = self._clock(), sequence.request.job
        if not pinned and self._store.covers(tokens, domain=job.cache_domain, now_s=now_s):
            return None
        return self._store.put(
            tokens,
            self._context.state_bytes(sequence.slot),
            lambda target: self._context.save_into(sequence.slot, target),
            cost_us=lambda n_shared: self._pace.prefill_us(n_shared, int(tokens.size) - n_shared),
            now_s=now_s,
            domain=sequence.request.domain if pinned else job.cache_domain,
            session=job.session,
            least=self._context.least(sequence.slot),
            pinned=pinned,
        )

    def _leave(self, sequence: Sequence) -> None:
        self._index.remove(sequence)
        self._resident.discard(sequence)
        self._cells.drop(sequence)
        self._context.clear(sequence.slot)
        sequence.phase = Phase.WAITING

    @staticmethod
    def _compute_again(sequence: Sequence) -> None:
        sequence.target = sequence.history
        sequence.token = -1
        sequence.n_past = 0

    @staticmethod
    def _computed(sequence: Sequence) -> NDArray[np.int32]:
        return sequence.history[: sequence.n_past]
