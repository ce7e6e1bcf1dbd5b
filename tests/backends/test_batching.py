"""The plan of a step: decode first, prompts with the time that is left, and what is learned of times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.generation.batching import (
    ALONE_US,
    AUTO_ITL_STEPS,
    GRAIN,
    LEAST_TOKENS,
    LONG_STEP,
    LONGER_STEP,
    MOST_AUTO_ITL_US,
    Batcher,
    Demand,
    Share,
    chunk_tokens,
)
from backends.generation.pace import Chunk, Pace

DEMANDS = st.lists(
    st.tuples(st.integers(1, 3000), st.booleans(), st.integers(0, 8000), st.floats(0, 1e8)), max_size=12
).map(lambda items: [Demand(i, 1 if d else n, d, depth, waited) for i, (n, d, depth, waited) in enumerate(items)])


def learned(*, decode_us: float = 10_000, token_us: float = 1_000, per_depth_us: float = 0.0) -> Pace:
    pace = Pace()
    for n in (1, 4, 8):
        pace.learn(n_decode=n, chunks=(), duration_us=decode_us)
    for depth in range(0, 4000, 100):
        each = token_us + per_depth_us * (depth + 32)
        pace.learn(n_decode=4, chunks=[Chunk(depth, 64)], duration_us=2 * decode_us + 64 * each)
    return pace


@given(demands=DEMANDS, room=st.none() | st.integers(0, 300), known=st.booleans())
def test_every_decoding_sequence_gets_its_token_and_the_step_stays_within_bounds(demands, room, known) -> None:
    batcher = Batcher(max_tokens=256, pace=learned() if known else Pace())

    shares = batcher.plan(demands, room=room)

    given_out = {share.sequence: share.n_tokens for share in shares}
    n_decode = sum(d.decoding for d in demands)
    most = 256 if room is None else min(256, room)
    assert len(given_out) == len(shares)
    assert sum(given_out.values()) <= most
    assert all(0 < given_out[d.sequence] <= d.n_tokens for d in demands if d.sequence in given_out)
    assert sum(given_out.get(d.sequence, 0) for d in demands if d.decoding) == min(n_decode, most)
    if demands and most > 0:
        assert shares


@given(demands=DEMANDS.filter(lambda ds: any(d.decoding for d in ds)), itl_ms=st.integers(30, 500))
def test_no_step_beside_running_streams_is_longer_than_the_itl_wished_for(demands, itl_ms) -> None:
    pace = learned(per_depth_us=0.1)
    shares = Batcher(max_tokens=4096, max_itl_us=itl_ms * 1e3, pace=pace).plan(demands)

    took_us = pace.decode_us(sum(d.decoding for d in demands))
    prompts = [(demands[s.sequence], s.n_tokens) for s in shares if not demands[s.sequence].decoding]
    took_us += sum(pace.prefill_us(d.depth, n) for d, n in prompts)
    slack_us = 2 * GRAIN * pace.token_us(12_000) if prompts else 0
    assert took_us <= itl_ms * 1e3 + slack_us


def test_an_itl_bound_is_a_small_multiple_of_a_step_where_none_is_configured() -> None:
    batcher = Batcher(pace=learned(decode_us=8_000, token_us=500))

    shares = batcher.plan([Demand(0, 1, True), Demand(1, 2000, False)])

    assert batcher.itl_us(1) == AUTO_ITL_STEPS * 8_000
    assert Batcher(pace=learned(decode_us=50_000)).itl_us(1) == MOST_AUTO_ITL_US
    assert abs(shares[1].n_tokens - (AUTO_ITL_STEPS - 1) * 8_000 / 500) <= GRAIN


def test_a_deep_prompt_gets_fewer_tokens_than_a_shallow_one() -> None:
    batcher = Batcher(max_itl_us=300_000, pace=learned(per_depth_us=0.5))

    shallow = batcher.plan([Demand(0, 1, True), Demand(1, 3000, False, depth=0)])
    deep = batcher.plan([Demand(0, 1, True), Demand(1, 3000, False, depth=3000)])

    assert GRAIN <= deep[1].n_tokens < shallow[1].n_tokens


def test_the_shortest_rest_comes_first_and_waiting_makes_up_for_length() -> None:
    batcher = Batcher(max_tokens=100, pace=learned())
    long, short = Demand(0, 2000, False), Demand(1, 100, False)
    patient = long._replace(waited_us=5e6)

    assert batcher.plan([long, short])[0].sequence == 1
    assert batcher.plan([patient, short])[0].sequence == 0


def test_a_prompt_advances_however_slow_the_machine_is() -> None:
    batcher = Batcher(max_itl_us=1000, pace=learned(decode_us=10_000, token_us=5_000))

    assert batcher.plan([Demand(0, 1, True), Demand(1, 900, False)]) == [Share(0, 1), Share(1, GRAIN)]


def test_a_short_prompt_that_holds_up_no_other_is_computed_at_once_however_slow_the_machine_is() -> None:
    batcher = Batcher(pace=learned(decode_us=50_000, token_us=50_000))

    assert batcher.plan([Demand(0, 47, False)]) == [Share(0, 47)]
    assert batcher.plan([Demand(0, 1, True), Demand(1, 47, False)])[1].n_tokens < 47


def test_a_prompt_beside_nothing_is_computed_in_long_steps_on_a_slow_machine() -> None:
    batcher = Batcher(pace=learned(token_us=3_000))
    prompt = Demand(0, 1000, False)

    assert batcher.plan([prompt]) == [Share(0, LONG_STEP.n_tokens)]
    assert batcher.plan([prompt], brief=True)[0].n_tokens <= GRAIN
    assert batcher.plan([prompt], n_prompts_beside=1)[0].n_tokens <= ALONE_US / 3_000 + GRAIN / 2
    assert batcher.plan([prompt, Demand(1, 1000, False, slot=1)])[0].n_tokens <= ALONE_US / 3_000 + GRAIN / 2
    assert Batcher(pace=learned(token_us=30_000)).plan([prompt]) == [Share(0, GRAIN)]


def test_a_step_that_can_be_ended_is_longer_until_one_was_ended() -> None:
    batcher = Batcher(ends_steps=True, pace=learned(token_us=3_000))
    prompt, slow = Demand(0, 1000, False), Batcher(ends_steps=True, pace=learned(token_us=5_000))

    assert batcher.plan([prompt]) == [Share(0, LONGER_STEP.n_tokens)]
    assert batcher.plan([prompt._replace(hurried=True)]) == [Share(0, LONG_STEP.n_tokens)]
    assert slow.plan([prompt])[0].n_tokens <= LONGER_STEP.most_us / 5_000 + GRAIN / 2
    assert batcher.plan([prompt], brief=True)[0].n_tokens <= GRAIN


def test_another_prompt_has_a_share_only_where_the_one_before_it_ends() -> None:
    batcher = Batcher(max_itl_us=200_000, pace=learned())
    streams, ending, long = Demand(0, 1, True), Demand(1, 40, False), Demand(2, 900, False)

    assert [share.sequence for share in batcher.plan([streams, long, long._replace(sequence=3)])] == [0, 2]
    assert batcher.plan([streams, ending, long]) == [Share(0, 1), Share(1, 40), Share(2, 2 * GRAIN)]


def test_the_end_of_a_prompt_does_not_make_a_step_longer_than_half_a_grain_does() -> None:
    batcher = Batcher(max_itl_us=110_000, pace=learned(decode_us=10_000, token_us=1_000))

    for rest in range(GRAIN, 6 * GRAIN):
        n_tokens = batcher.plan([Demand(0, 1, True), Demand(1, rest, False)])[1].n_tokens
        assert GRAIN <= n_tokens <= 90 + GRAIN // 2  # 90 tokens fit behind two passes of 10 ms
        assert n_tokens in (rest, GRAIN) or rest - n_tokens >= GRAIN // 2


@given(st.integers(1, 600), st.integers(0, 600), st.booleans(), st.booleans())
def test_a_prompt_is_cut_where_tiles_lie_on_both_sides(n_ahead: int, exact: int, first: bool, whole: bool) -> None:
    n_tokens = chunk_tokens(n_ahead, exact, first=first, whole_is_cheaper=lambda: whole)

    assert 0 <= n_tokens <= n_ahead
    assert n_tokens or not first, "the first one advances"
    assert n_tokens <= exact + (GRAIN // 2 if first else 0) + 1 or (first and n_tokens <= 2 * GRAIN)
    rest = n_ahead - n_tokens
    if n_ahead <= GRAIN:
        assert n_tokens in (0, n_ahead) or first
    elif n_tokens and rest:
        assert n_tokens % GRAIN == 0
        assert rest > GRAIN or n_ahead <= 2 * GRAIN
    if n_ahead <= exact - GRAIN:
        assert rest == 0, "what there is time for is computed"
    larger = chunk_tokens(n_ahead, exact + GRAIN, first=first, whole_is_cheaper=lambda: whole)
    assert larger >= n_tokens, "more time is never less work"


def test_rows_of_a_medium_are_whole_tiles_of_a_pass_without_decoding_neighbours() -> None:
    batcher = Batcher(max_itl_us=200_000, pace=learned())
    decoding = [Demand(number, 1, True, slot=number) for number in range(4)]
    image = Demand(4, 900, False, slot=4, apart=True)

    assert batcher.plan([*decoding, image])[-1] == Share(4, 3 * GRAIN)
    assert batcher.plan([*decoding, image._replace(apart=False)])[-1] == Share(4, 3 * GRAIN + 1)
    both = batcher.plan([*decoding, Demand(5, 900, False, slot=4), image._replace(n_tokens=GRAIN, slot=5)])
    assert both[-2:] == [Share(5, GRAIN + 1), Share(4, GRAIN)], "a prompt of words goes with its neighbours still"


def test_shares_come_in_the_order_of_slots_and_in_whole_tiles_beside_decoding_neighbours() -> None:
    batcher = Batcher(max_itl_us=500_000, pace=learned())
    demands = [Demand(0, 400, False, slot=3), Demand(1, 1, True, slot=2), Demand(2, 1, True, slot=0)]

    *decoding, prompt = batcher.plan(demands)

    assert [share.sequence for share in decoding] == [2, 1]
    assert prompt.n_tokens % GRAIN == 1 or prompt.n_tokens == 400, "one token goes with the neighbour's"
    fixed = [demands[0]._replace(fixed=True, n_tokens=GRAIN + 40), *demands[1:]]
    assert batcher.plan(fixed)[-1].n_tokens == GRAIN + 40


@pytest.mark.parametrize("length", [1290, 1314, 1327, 1345, 1360])
def test_streams_keep_their_itl_while_long_prompts_come_and_those_lose_little(length: int) -> None:
    """Four streams beside prompts of some length, on a machine as two cores were measured."""
    itl_us, batcher = 160_000.0, Batcher(max_itl_us=160_000)
    for n in (1, 4):
        batcher.pace.learn(n_decode=n, chunks=(), duration_us=_pass_us(n, 0))
    for past in range(0, 1300, 100):
        batcher.pace.learn(n_decode=4, chunks=[Chunk(past, 40)], duration_us=_pass_us(4, 0) + _pass_us(40, past))
    now_us, longest_us, prefill_us, decode_us = 0.0, 0.0, 0.0, _pass_us(4, 0)
    arriving, prompts = [i * 1.5e6 for i in range(6)], dict[int, int]()
    while arriving or prompts:
        if arriving and (now_us >= arriving[0] or not prompts):
            now_us = max(now_us, arriving.pop(0))
            prompts[4 + len(arriving)] = 0
        demands = [Demand(slot, 1, True, slot=slot) for slot in range(4)]
        demands += [Demand(slot, length - past, False, past, slot=slot) for slot, past in prompts.items()]
        shares = batcher.plan(demands)
        chunks = [Chunk(prompts[s.sequence], s.n_tokens) for s in shares if s.sequence in prompts]
        slots = {share.sequence for share in shares}
        apart = [s.sequence > 4 and s.sequence - 1 not in slots for s in shares if s.sequence in prompts]
        took_us = decode_us + sum(_pass_us(c.n_tokens - (not a), c.depth) for c, a in zip(chunks, apart, strict=True))
        batcher.pace.learn(n_decode=4, chunks=chunks, duration_us=took_us)
        for share in shares:
            if share.sequence in prompts:
                prompts[share.sequence] += share.n_tokens
        prompts = {slot: past for slot, past in prompts.items() if past < length}
        now_us, longest_us, prefill_us = now_us + took_us, max(longest_us, took_us), prefill_us + took_us - decode_us

    assert longest_us < 1.3 * itl_us
    assert prefill_us < 1.15 * 6 * (_pass_us(512, 0) + _pass_us(512, 512) + _pass_us(length - 1024, 1024))


@pytest.mark.parametrize("depth", [0, 1300, 4000])
def test_a_short_rest_takes_no_longer_than_the_itl_however_deep_it_lies(depth: int) -> None:
    """What a conversation adds to a prompt that was found: nothing of it fills a tile."""
    batcher = Batcher(max_itl_us=160_000)
    for past in 2 * list(range(0, 4000, 400)):
        for n_tokens in (64, 40):
            took_us = _pass_us(4, 0) + _pass_us(n_tokens, past)
            batcher.pace.learn(n_decode=4, chunks=[Chunk(past, n_tokens)], duration_us=took_us)
        batcher.pace.learn(n_decode=4, chunks=(), duration_us=_pass_us(4, 0))
    left = 60
    while left:
        (n_tokens,) = [s.n_tokens for s in batcher.plan([Demand(0, 1, True), Demand(1, left, False, depth)])[1:]]
        assert _pass_us(4, 0) + _pass_us(n_tokens, depth) < max(
            1.25 * 160_000, 1.01 * (_pass_us(4, 0) + _pass_us(LEAST_TOKENS, depth))
        )
        left, depth = left - n_tokens, depth + n_tokens


def _pass_us(n_tokens: int, depth: int) -> float:
    """One pass: the weights, then tokens that read what lies before them: in tiles of 64, and fewer one by one."""
    n_tiles, each_us = (-(-n_tokens // GRAIN), 0.5) if n_tokens >= GRAIN else (n_tokens / GRAIN, 5.5)
    return 8_000 + 750 * n_tokens + n_tiles * GRAIN * each_us * (depth + n_tokens / 2)


def test_a_known_prompt_is_computed_from_earlier_where_a_tile_is_cheaper_than_a_few_tokens() -> None:
    pace = Pace()
    for past in 2 * list(range(0, 4000, 400)):
        for n_tokens in (64, 40):
            pace.learn(n_decode=0, chunks=[Chunk(past, n_tokens)], duration_us=_pass_us(n_tokens, past))
    assert pace.begin_at(760, 800) == 800 - 65
    assert pace.begin_at(796, 800) == 796, "four tokens one by one take less"
    assert pace.begin_at(700, 800) == 700, "what is left fills a tile"
    assert pace.begin_at(40, 80) == 40
    assert learned().begin_at(760, 800) == 760, "where they cost the same nothing is computed twice"


def test_a_pause_of_the_machine_is_not_taken_for_the_models_pace() -> None:
    pace = learned()
    before_us = pace.token_us(500)

    pace.learn(n_decode=4, chunks=[Chunk(500, 64)], duration_us=60e6)

    assert pace.token_us(500) < 1.2 * before_us


def test_a_machine_that_has_become_slower_is_believed() -> None:
    pace = learned(token_us=1_000)

    for _ in range(100):
        pace.learn(n_decode=0, chunks=[Chunk(500, 64)], duration_us=64 * 3_000)

    assert 2_500 < pace.token_us(500) < 3_500


def test_a_short_prompt_is_not_cut_for_what_tokens_far_behind_it_would_take() -> None:
    """Given a bound that holds no prompt back, and times whose noise rises with depth, then a prompt is one chunk."""
    pace = Pace()
    for depth, us in ((0, 50_000), (100, 150_000)) * 20:
        pace.learn(n_decode=0, chunks=[Chunk(depth, 130)], duration_us=us)
    batcher = Batcher(max_itl_us=60e6, pace=pace)

    assert batcher.plan([Demand(i, 130, False, slot=i) for i in range(3)], room=2048) == [
        Share(i, 130) for i in range(3)
    ]
