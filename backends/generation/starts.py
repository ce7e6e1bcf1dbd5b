"""Where a prompt may begin: the longest prefix of it that a running sequence or the store holds. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backends.prefix.store import LEAST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.generation.decoder import DecoderContext
    from backends.generation.pace import Pace
    from backends.generation.sequence import Sequence
    from backends.prefix.entry_files import EntryFile
    from backends.prefix.index import PrefixIndex
    from backends.prefix.store import PrefixStore


class Start(NamedTuple):
    """Where the first positions of a prompt come from: a running sequence or a kept state, and perhaps a checkpoint."""

    n_tokens: int = 0
    source: Sequence | None = None
    entry: EntryFile | None = None
    checkpoint: EntryFile | None = None


class Starts:
    """Looks for them, for one model."""

    def __init__(
        self, context: DecoderContext, index: PrefixIndex[Sequence], store: PrefixStore | None, pace: Pace
    ) -> None:
        """`index` is of the running sequences, which its owner keeps up to date."""
        self._context = context
        self._index = index
        self._store = store
        self._pace = pace
        self._pooled = context.layout == "unified"

    def running(self, sequence: Sequence) -> Start | None:
        """The longest that a running sequence has; None where none has enough."""
        if sequence.request.scoring:
            return None
        most = sequence.target.size - 1
        for match in self._index.matches(sequence.keys, domain=sequence.request.domain):
            least = self._context.least_shared(match.holder.slot)
            for n_tokens in self._places(sequence, min(match.n_tokens, most)):
                if n_tokens >= max(LEAST_TOKENS, least):
                    return Start(n_tokens, source=match.holder)
        return None

    def _places(self, sequence: Sequence, n_known: int) -> tuple[int, ...]:
        """Where to begin with a prompt that is known so far, the best first: at a tile where that is cheaper."""
        cut = sequence.request.layout.cut
        n_known = cut(n_known)
        return (n_known,) if self._pooled else (cut(self._pace.begin_at(n_known, sequence.target.size)), n_known)

    def kept(self, sequence: Sequence, *, room: int | None) -> Start:
        """The longest that the store holds; `room`: free cells of the pool, None without one."""
        job = sequence.request.job
        if self._store is None or not job.cache_prompt or sequence.request.scoring:
            return Start()
        most = sequence.target.size - 1
        keys = sequence.keys
        found = next(self._store.find(keys, domain=job.cache_domain, session=job.session, most=most), None)
        start = Start()
        if found is not None:
            places = self._places(sequence, found.n_tokens)
            start = Start(next(n for n in places if n >= found.entry.label.least), entry=found.entry)
        for checkpoint in self._store.checkpoints(keys, domain=job.cache_domain, most=most):
            n_tokens = checkpoint.label.n_tokens
            if n_tokens <= (0 if found is None else found.n_tokens):
                break
            if carrier := next(self._carriers(checkpoint, job.session, room), None):
                return carrier
        return start

    def _carriers(self, checkpoint: EntryFile, session: str, room: int | None) -> Iterator[Start]:
        """Who has what a checkpoint lacks: states that are kept, and running sequences that have come so far."""
        assert self._store is not None
        n_tokens = checkpoint.label.n_tokens
        for entry in self._store.carriers(checkpoint, session=session):
            if room is None or entry.label.n_tokens <= room:  # it comes back whole before it is cut
                yield Start(n_tokens, entry=entry, checkpoint=checkpoint)
        for match in self._index.matches(checkpoint.keys, domain=checkpoint.label.domain):
            if match.n_tokens == n_tokens <= match.holder.n_past:
                yield Start(n_tokens, source=match.holder, checkpoint=checkpoint)
