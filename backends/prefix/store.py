"""What is kept of cached prefixes, and what leaves when room is needed: each has a score: what it saves per byte.

Owns the entries of one model in host memory and, where there is one, on a disk. It knows no engine: states are bytes.

An entry is a whole state or a checkpoint. A checkpoint is of use together with a carrier: a whole state, or a running
sequence, that begins with all its keys. It leaves with the last of them.
"""

from __future__ import annotations

import heapq
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.prefix.entry_files import EntryFile, EntryFolder, Label, size_of
from backends.prefix.eviction_score import eviction_score
from backends.prefix.index import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from backends.prefix.keys import Keys

LEAST_TOKENS: Final = 16
"""Fewer are computed again faster than they are looked after."""
_MOST_CANDIDATES: Final = 32


class Found(NamedTuple):
    """An entry that holds the beginning of a prompt, and how many tokens of it."""

    entry: EntryFile
    n_tokens: int


class PrefixStore:
    """See the module's text. `identity` names everything that a state depends on."""

    def __init__(
        self,
        folder: EntryFolder,
        max_bytes: int,
        *,
        identity: str,
        disk: EntryFolder | None = None,
        disk_bytes: int = 0,
    ) -> None:
        self._identity = identity
        self._index: PrefixIndex[EntryFile] = PrefixIndex()
        """Whole states."""
        self._checkpoints: PrefixIndex[EntryFile] = PrefixIndex()
        self._tiers = {folder: max_bytes, **({disk: disk_bytes} if disk is not None else {})}
        self._host, self._disk = folder, disk
        self._of: dict[EntryFile, EntryFolder] = {}
        self._bytes = dict.fromkeys(self._tiers, 0)
        self.n_bytes = 0
        """What the entries in host memory take."""
        for tier in self._tiers:
            for entry in tier.scan(identity):
                self._add(entry, tier)
        for entry in [entry for entry in self._of if entry.label.partial]:
            self.let_go([entry])
        for tier in self._tiers:  # this worker may have been given less than the one before
            self._make_room(tier, 0, score_at_least=None, now_s=max((b.used_s for b in self._of), default=0.0))

    def __len__(self) -> int:
        return len(self._of)

    def limit(self, max_bytes: int, *, now_s: float) -> None:
        """Hold no more than that in host memory from now on; what is pinned leaves last."""
        self._tiers[self._host] = max_bytes
        self._make_room(self._host, 0, score_at_least=None, now_s=now_s, pinned_too=True)

    def find(self, keys: Keys, *, domain: str, session: str = "", most: int) -> Iterator[Found]:
        """Whole states that hold some of the first `most` tokens and can be cut to that, longest first, memory before
        disk.
        """
        found = []
        for match in self._index.matches(keys, domain=domain, most_each=_MOST_CANDIDATES):
            n_tokens = min(match.n_tokens, most)
            if n_tokens >= max(match.holder.label.least, LEAST_TOKENS):
                found.append(Found(match.holder, n_tokens))
        found.sort(key=lambda f: (-f.n_tokens, *self._preference(f.entry, session)))
        return iter(found)

    def newest(self, n: int, *, domain: str) -> list[Keys]:
        """The keys of the whole states of a domain that were used last."""
        own = (entry for entry in self._of if entry.label.domain == domain and not entry.label.partial)
        return [entry.keys for entry in heapq.nlargest(n, own, key=lambda entry: entry.used_s)]

    def checkpoints(self, keys: Keys, *, domain: str, most: int) -> Iterator[EntryFile]:
        """Checkpoints within the first `most` keys, longest first, memory before disk."""
        found = self._checkpoints.contained(keys[:most], domain=domain)
        yield from sorted(found, key=lambda entry: (-entry.label.n_tokens, self._of[entry] is not self._host))

    def carriers(self, checkpoint: EntryFile, *, session: str = "") -> Iterator[EntryFile]:
        """Whole states that hold what a checkpoint lacks, the smallest first, memory before disk."""
        keys, domain = checkpoint.keys, checkpoint.label.domain
        matches = self._index.matches(keys, domain=domain, most_each=_MOST_CANDIDATES)
        found = [match.holder for match in matches if match.n_tokens == keys.size]
        yield from sorted(found, key=lambda entry: self._preference(entry, session))

    def longest(self, keys: Keys, *, domain: str) -> int:
        """How many of the tokens a whole state begins with, whether it can be cut there or not."""
        return next((match.n_tokens for match in self._index.matches(keys, domain=domain)), 0)

    def let_go(self, checkpoints: Iterable[EntryFile]) -> None:
        """No sequence runs with these any more: those without a carrier are of no use."""
        for entry in checkpoints:
            if entry.n_running == 0 and next(self.carriers(entry), None) is None:
                self.drop(entry)

    def _reach(self, keys: Keys, *, domain: str, without: list[EntryFile]) -> tuple[int, EntryFile | None]:
        """How many of the tokens need not be computed, and which entry that is owed to."""
        states = self.find(keys, domain=domain, most=keys.size)
        entry, n_tokens = next((found for found in states if found.entry not in without), (None, 0))
        for checkpoint in self.checkpoints(keys, domain=domain, most=keys.size):
            if checkpoint.label.n_tokens <= n_tokens:
                break
            if any(carrier not in without for carrier in self.carriers(checkpoint)):
                return checkpoint.label.n_tokens, checkpoint
        return n_tokens, entry

    def _preference(self, entry: EntryFile, session: str) -> tuple[bool, bool, int]:
        """Of entries that hold as much the smallest one of the session, in memory rather than on a disk."""
        return self._of[entry] is not self._host, not session or entry.label.session != session, entry.n_bytes

    def open(self, entry: EntryFile, *, now_s: float) -> NDArray[np.uint8] | None:
        """The bytes of an entry; None for one that has left, or that turns out to be broken, which is dropped."""
        if entry not in self._of:
            return None
        state = self._of[entry].open(entry)
        if state is None:
            self.drop(entry)
        else:
            self._of[entry].touch(entry, now_s)
        return state

    def covers(self, keys: Keys, *, domain: str, now_s: float) -> bool:
        """Whether keeping these would save too little; an entry that holds them already is used once more."""
        n_tokens, entry = self._reach(keys, domain=domain, without=[])
        if entry is not None and keys.size - n_tokens < LEAST_TOKENS:
            self._of[entry].touch(entry, now_s)
            return True
        return keys.size < LEAST_TOKENS

    def put(
        self,
        keys: Keys,
        n_state: int,
        fill: Callable[[NDArray[np.uint8]], bool],
        *,
        cost_us: Callable[[int], float],
        now_s: float,
        domain: str = "",
        session: str = "",
        least: int = 0,
        pinned: bool = False,
        partial: bool = False,
    ) -> EntryFile | None:
        """Keep the state of `tokens`, which `fill` writes; None where it is not worth the room it would take.

        `cost_us(n)` is what computing it takes when the first n tokens are there. What it wholly contains leaves:
        once it is written, or before where there is no room for both. Where host memory has none, it goes to the disk.
        """
        contained = [] if pinned or partial else self._replaced(keys, domain=domain, least=least)
        shared, _ = self._reach(keys, domain=domain, without=contained)
        label = Label(self._identity, int(keys.size), n_state, domain, session, least, cost_us(shared), partial)
        uses = sum(entry.n_uses + (not entry.label.partial) for entry in contained)
        n_bytes = size_of(int(keys.size), n_state)
        bound = (
            None if pinned else eviction_score(label.cost_us, uses + 1, 0.0, n_bytes)
        )  # who has just spoken goes on likelier
        with self._held(self._checkpoints.contained(keys, domain=domain)):
            return self._place(label, keys, fill, contained, uses=uses, bound=bound, now_s=now_s, pinned=pinned)

    def _place(
        self,
        label: Label,
        keys: Keys,
        fill: Callable[[NDArray[np.uint8]], bool],
        contained: list[EntryFile],
        *,
        uses: int,
        bound: float | None,
        now_s: float,
        pinned: bool,
    ) -> EntryFile | None:
        n_bytes = size_of(label.n_tokens, label.n_state)
        for tier in self._tiers:
            given_back = sum(entry.n_bytes for entry in contained if self._of.get(entry) is tier)
            if not self._make_room(tier, n_bytes - given_back, score_at_least=bound, now_s=now_s, kept=contained):
                continue
            if self._bytes[tier] + n_bytes > self._tiers[tier]:
                self._drop_all(contained)
            made = tier.put(label, keys, fill, now_s=now_s)
            if made is not None:
                self._drop_all(contained)
                made.n_uses, made.pinned = uses, pinned
                self._add(made, tier)
                return made
        return None

    @contextmanager
    def _held(self, checkpoints: list[EntryFile]) -> Iterator[None]:
        """While one carrier makes room for the next, checkpoints stay."""
        for entry in checkpoints:
            entry.n_running += 1
        try:
            yield
        finally:
            for entry in checkpoints:
                entry.n_running -= 1
            self.let_go(checkpoints)

    def _replaced(self, keys: Keys, *, domain: str, least: int) -> list[EntryFile]:
        """What a whole state of `tokens` makes superfluous: all that it, or it and a checkpoint, can give."""
        checkpoints = self._checkpoints.contained(keys, domain=domain)
        sizes = {entry.label.n_tokens for entry in checkpoints}
        return [entry for entry in checkpoints if least <= entry.label.n_tokens] + [
            entry
            for entry in self._index.contained(keys, domain=domain)
            if not entry.pinned and (least <= entry.label.n_tokens or entry.label.n_tokens in sizes)
        ]

    def drop(self, entry: EntryFile) -> None:
        """Let an entry go, and checkpoints that no other carries; nothing for one that has left."""
        tier = self._of.pop(entry, None)
        if tier is None:
            return
        self._count(tier, -entry.n_bytes)
        tier.drop(entry)
        if entry.label.partial:
            self._checkpoints.remove(entry)
        else:
            self._index.remove(entry)
            self.let_go(self._checkpoints.contained(entry.keys, domain=entry.label.domain))

    def _count(self, tier: EntryFolder, n_bytes: int) -> None:
        self._bytes[tier] += n_bytes
        self.n_bytes = self._bytes[self._host]

    def _drop_all(self, entries: list[EntryFile]) -> None:
        for entry in entries:
            self.drop(entry)

    def _add(self, entry: EntryFile, tier: EntryFolder) -> None:
        self._of[entry] = tier
        self._count(tier, entry.n_bytes)
        index = self._checkpoints if entry.label.partial else self._index
        index.add(entry, entry.keys, domain=entry.label.domain)

    def _make_room(
        self,
        tier: EntryFolder,
        n_bytes: int,
        *,
        score_at_least: float | None,
        now_s: float,
        kept: list[EntryFile] | None = None,
        pinned_too: bool = False,
    ) -> bool:
        """Let those of the lowest score leave until so many bytes are free, none with more than `score_at_least`."""
        needed = self._bytes[tier] + n_bytes - self._tiers[tier]
        leaving: list[EntryFile] = []
        if needed > 0:
            rated = sorted(
                (b.pinned, eviction_score(b.label.cost_us, b.n_uses, now_s - b.used_s, b.n_bytes), i, b)
                for i, (b, where) in enumerate(self._of.items())
                if where is tier and (pinned_too or not b.pinned) and (kept is None or b not in kept)
            )
            for _, rate, _, entry in rated:
                if needed <= 0 or (score_at_least is not None and rate > score_at_least):
                    break
                leaving.append(entry)
                needed -= entry.n_bytes
        if needed > 0:
            return False
        for entry in leaving:
            if entry in self._of:  # a checkpoint leaves with its last carrier
                self._leave(entry, tier, now_s)
        return True

    def _leave(self, entry: EntryFile, tier: EntryFolder, now_s: float) -> None:
        """Out of host memory an entry goes to the disk, where there is one and it has room for it."""
        if tier is self._host and self._disk is not None:
            self._sink(entry, self._disk, now_s)
        self.drop(entry)

    def _sink(self, entry: EntryFile, disk: EntryFolder, now_s: float) -> None:
        bound = eviction_score(entry.label.cost_us, entry.n_uses, now_s - entry.used_s, entry.n_bytes)
        if not self._make_room(disk, entry.n_bytes, score_at_least=bound, now_s=now_s):
            return
        state = self._host.open(entry)
        if state is None:
            return

        def copy(target: NDArray[np.uint8]) -> bool:
            target[:] = state
            return True

        sunk = disk.put(entry.label, entry.keys, copy, now_s=entry.used_s)
        if sunk is not None:
            sunk.n_uses = entry.n_uses
            self._add(sunk, disk)
