"""How a step's shares are rounded so that llama.cpp's attention computes whole tiles. Pure.

With one KV stream per sequence llama.cpp computes a step in passes. A pass takes a run of neighbouring slots, and of
each as many tokens as the shortest rest among them has: the first one ends with what decoding sequences have, a
single token. Attention takes 64 queries of a sequence as one tile, and fewer one by one: 63 tokens cost a third more
than 64. So what a prompt has beyond the next shorter share of its run is to be a whole number of tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TILE: Final = 64


class Rows(NamedTuple):
    """What a slot contributes to a step, and what it could contribute at most."""

    slot: int
    n_tokens: int
    most: int
    """Equal to `n_tokens` where nothing follows, or nothing more may: such a share stays as it is."""


def in_tiles(shares: Sequence[Rows], *, extra: int) -> list[int]:
    """The tokens of each share, rounded; `shares` are in ascending order of slots, `extra` is what may be added."""
    given = [share.n_tokens for share in shares]
    for run in _runs(shares):
        below, whole = 0, True
        for index in sorted(run, key=lambda i: (shares[i].n_tokens, shares[i].n_tokens < shares[i].most)):
            _, n_tokens, most = shares[index]
            if n_tokens < most:
                n_tiles = max(0 if whole and below else 1, round((n_tokens - below) / TILE))
                rounded = below + n_tiles * TILE
                if rounded <= most and rounded - n_tokens <= extra:
                    extra -= max(0, rounded - n_tokens)
                    given[index] = rounded
            below, whole = given[index], n_tokens < most
    return given


def _runs(shares: Sequence[Rows]) -> Iterator[list[int]]:
    """The indices of neighbouring slots."""
    run: list[int] = []
    for index, share in enumerate(shares):
        if run and share.slot != shares[index - 1].slot + 1:
            yield run
            run = []
        run.append(index)
    if run:
        yield run
