"""The plan of a step: decode first, prompts with what is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.batching import Batcher, Demand, Share

DEMANDS = st.lists(st.tuples(st.integers(1, 3000), st.booleans()), max_size=12).map(
    lambda items: [Demand(i, 1 if decoding else n, decoding) for i, (n, decoding) in enumerate(items)]
)


@given(demands=DEMANDS)
def test_every_decoding_sequence_gets_its_token_and_the_step_stays_within_bounds(demands: list[Demand]) -> None:
    batcher = Batcher(max_tokens=256, max_prefill_beside_decode=64)

    shares = {share.sequence: share.n_tokens for share in batcher.plan(demands)}

    assert all(shares[d.sequence] == 1 for d in demands if d.decoding)
    assert sum(shares.values()) <= 256
    assert all(0 < shares[d.sequence] <= d.n_tokens for d in demands if d.sequence in shares)
    if any(d.decoding for d in demands):
        assert sum(shares.get(d.sequence, 0) for d in demands if not d.decoding) <= 64
    if demands:
        assert shares


def test_a_prompt_alone_takes_the_whole_step() -> None:
    assert Batcher(max_tokens=512).plan([Demand(0, 2000, False)]) == [Share(0, 512)]


def test_the_oldest_prompt_comes_first() -> None:
    plan = Batcher(max_tokens=100).plan([Demand(0, 80, False), Demand(1, 80, False)])

    assert plan == [Share(0, 80), Share(1, 20)]
