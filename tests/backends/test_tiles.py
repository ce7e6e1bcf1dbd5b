"""Shares of a step, rounded so that llama.cpp's attention computes whole tiles."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from backends.generation.tiles import TILE, Rows, in_tiles

DECODING = 1


def passes(slots: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int]]:
    """`(sequences, tokens of each)` of every pass, as llama.cpp's `split_equal` makes them."""
    left = dict(zip(slots, counts, strict=True))
    made = []
    while left:
        run = [min(left)]
        while run[-1] + 1 in left:
            run.append(run[-1] + 1)
        n_each = min(left[slot] for slot in run)
        made.append((len(run), n_each))
        for slot in run:
            left[slot] -= n_each
        left = {slot: n for slot, n in left.items() if n}
    return made


SHARES = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([DECODING, DECODING, 26, 64, 91, 128, 256]), st.booleans()), max_size=8
).map(
    lambda items: [
        Rows(sum(gap for gap, _, _ in items[: i + 1]), n, 2000 if goes_on and n >= TILE else n)
        for i, (_, n, goes_on) in enumerate(items)
    ]
)


@given(shares=SHARES, extra=st.integers(0, 300))
def test_what_ends_stays_and_what_goes_on_is_moved_by_less_than_two_tiles(shares, extra) -> None:
    given_out = in_tiles(shares, extra=extra)

    assert sum(given_out) - sum(s.n_tokens for s in shares) <= extra
    for share, n in zip(shares, given_out, strict=True):
        assert n == share.n_tokens if share.n_tokens == share.most else 0 < n <= share.most
        assert abs(n - share.n_tokens) < 2 * TILE


@given(shares=SHARES)
def test_a_prompt_that_goes_on_is_computed_in_whole_tiles(shares) -> None:
    given_out = in_tiles(shares, extra=10_000)

    ends = [n for share, n in zip(shares, given_out, strict=True) if share.n_tokens == share.most]
    if len(set(ends)) <= 1:
        odd = [n for _, n in passes([s.slot for s in shares], given_out) if n % TILE]
        assert len(odd) <= len(ends)  # each holds the rest of one that ends


def test_a_chunk_beside_decoding_sequences_has_the_token_that_goes_with_theirs() -> None:
    assert in_tiles([Rows(0, 1, 1), Rows(1, 1, 1), Rows(2, 128, 900)], extra=99) == [1, 1, 129]


def test_a_chunk_in_a_slot_apart_stays_as_it_is() -> None:
    assert in_tiles([Rows(0, 1, 1), Rows(1, 1, 1), Rows(4, 128, 900)], extra=99) == [1, 1, 128]


def test_neighbouring_chunks_share_their_passes() -> None:
    """One behind the other beside decoding sequences, not only the first of them, has the extra token."""
    shares = [Rows(0, 1, 1), Rows(1, 64, 900), Rows(2, 64, 900)]
    assert passes([0, 1, 2], in_tiles(shares, extra=99)) == [(3, 1), (2, 64)]


def test_a_chunk_beside_a_prompts_rest_is_whole_behind_it() -> None:
    assert passes([3, 4], in_tiles([Rows(3, 26, 26), Rows(4, 64, 900)], extra=99)) == [(2, 26), (1, 64)]
