"""Drafts are as long as they pay, on any library: held against what the same text takes without them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from backends.generation.draft_policy import Acceptance, ModelRecord, ModelTrust, RowCosts, learn_both, rows_of
from backends.generation.lookup import TextLookup
from backends.generation.pace import Pace

PLAIN_US = 10_000.0
LIBRARIES: dict[str, Callable[[int], float]] = {
    "free rows": lambda rows: 1.0 + 0.01 * (rows - 1),
    "rows at a third": lambda rows: 1.0 + 0.33 * (rows - 1),
    "each row a step": lambda rows: float(rows),
    "dearer than a step": lambda rows: 1.4 * rows - 0.4,
    "in fours": lambda rows: 1.0 if rows == 1 else 2.0 * -(-rows // 4),
}
"""What a step takes with so many rows, of one with a single row."""
VOCABULARY = 300


def copied(rng: random.Random, prompt: list[int]) -> list[int]:
    return prompt[:400]


def edited(rng: random.Random, prompt: list[int]) -> list[int]:
    return [rng.randrange(VOCABULARY) if place % 40 == 20 else token for place, token in enumerate(prompt[:400])]


def free(rng: random.Random, prompt: list[int]) -> list[int]:
    return [min(rng.randrange(VOCABULARY), rng.randrange(VOCABULARY)) for _ in range(400)]


def luring(rng: random.Random, prompt: list[int]) -> list[int]:
    """Copies that break off as soon as they are believed."""
    text: list[int] = []
    while len(text) < 400:
        begin = rng.randrange(len(prompt) - 12)
        text += [*prompt[begin : begin + rng.choice([4, 5, 6, 9])], VOCABULARY + len(text)]
    return text[:400]


def turning(rng: random.Random, prompt: list[int]) -> list[int]:
    return [*copied(rng, prompt)[:200], *luring(rng, prompt)[:200]]


def alternating(rng: random.Random, prompt: list[int]) -> list[int]:
    """Twenty tokens that are copied, and as many that lure."""
    text: list[int] = []
    while len(text) < 400:
        begin = rng.randrange(len(prompt) - 20)
        text += [*prompt[begin : begin + 20], *luring(rng, prompt)[:20]]
    return text[:400]


def speed(text: list[int], prompt: list[int], cost: Callable[[int], float], *, noise: random.Random) -> float:
    """How many times as fast a text comes with drafts, in a machine whose steps take what they take and some more."""
    pace = Pace()
    pace.learn_decode(1, PLAIN_US)
    costs, own, of_model, lookup = RowCosts(pace), Acceptance(), Acceptance(), TextLookup(prompt)
    took_us, at = 0.0, 0
    while at < len(text):
        chances = own.chances(lookup.matched, len(lookup.draft(15))) if lookup.at >= 0 else []
        (n_drafted,) = rows_of([chances], costs, most=15) if costs.solvent and chances else (0,)
        if not n_drafted and chances and chances[0] > 0.8:
            costs.refused(1)
        draft = lookup.draft(n_drafted) if n_drafted else []
        step_us = PLAIN_US * cost(1 + len(draft)) * noise.choice([1.0, 1.0, 1.0, 1.05, 1.3])
        took_us += PLAIN_US * cost(1 + len(draft))
        before = at
        for place in range(1 + len(draft)):
            if at == len(text):
                break
            matched, hit = lookup.matched, lookup.follow(text[at])
            if hit is not None:
                learn_both(own, of_model, matched, hit=hit)
            at += 1
            if place < len(draft) and draft[place] != text[at - 1]:
                break
        costs.learn(1, len(draft), at - before - 1, step_us) if draft else pace.learn_decode(1, step_us)
    return len(text) * PLAIN_US / took_us


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("text", [copied, edited, free, luring, turning, alternating])
def test_no_text_comes_slower_on_any_library(library: str, text: Callable[..., list[int]]) -> None:
    ratios = []
    for seed in range(5):
        rng = random.Random(seed)
        prompt = [rng.randrange(VOCABULARY) for _ in range(500)]
        ratios.append(speed(text(rng, prompt), prompt, LIBRARIES[library], noise=rng))

    assert sum(ratios) / len(ratios) >= 0.97
    assert min(ratios) >= 0.94


@pytest.mark.parametrize(
    ("library", "text", "least"),
    [
        ("free rows", copied, 8.0),
        ("free rows", edited, 4.0),
        ("rows at a third", copied, 1.9),
        ("in fours", edited, 1.4),
    ],
)
def test_a_text_that_repeats_comes_faster_where_rows_are_cheap(
    library: str, text: Callable[..., list[int]], least: float
) -> None:
    rng = random.Random(1)
    prompt = [rng.randrange(VOCABULARY) for _ in range(500)]

    assert speed(text(rng, prompt), prompt, LIBRARIES[library], noise=rng) >= least


def test_a_stream_that_copies_holds_up_none_that_does_not() -> None:
    pace = Pace()
    pace.learn_decode(2, PLAIN_US)
    dear, cheap = RowCosts(pace), RowCosts(pace)
    for n_drafted in (1, 3, 7, 15):
        for _ in range(20):
            dear.learn(2, n_drafted, n_drafted, PLAIN_US * (1 + 0.2 * n_drafted))
            cheap.learn(2, n_drafted, n_drafted, PLAIN_US * (1 + 0.0004 * n_drafted))

    certain = [0.99**place for place in range(1, 16)]

    assert rows_of([certain, []], dear, most=15) == [0, 0]
    assert rows_of([certain, []], cheap, most=15) == [15, 0]
    assert sum(rows_of([certain, certain], dear, most=15)) > 6


def test_rows_that_once_took_long_are_tried_again() -> None:
    pace = Pace()
    pace.learn_decode(1, PLAIN_US)
    costs = RowCosts(pace)
    for _ in range(3):
        costs.learn(1, 1, 0, 50 * PLAIN_US)
    assert rows_of([[0.95]], costs, most=15) == [0]

    for _ in range(2000):
        assert costs.stake <= 9
        if costs.solvent:
            costs.refused(1)

    assert rows_of([[0.95]], costs, most=15) == [1]


@pytest.mark.parametrize("chance", [0.2, 0.4])
def test_a_model_that_did_not_pay_is_tried_again(chance: float) -> None:
    trust = ModelTrust(ModelRecord())
    trust.begin()
    while trust.chances(15)[0] > chance:
        trust.begin()
        trust.goes_on(64.0)
        trust.learn(1, 0)

    found = [trust.chances(15)[:1] for _ in range(130)]

    assert found[-1] >= [0.7]


def test_a_first_step_that_took_long_makes_no_rows_cheap() -> None:
    pace, certain = Pace(), [0.99**place for place in range(1, 16)]
    pace.learn_decode(1, 40 * PLAIN_US)  # while its weights came from the disk
    costs = RowCosts(pace)
    for _ in range(4):
        for n_drafted in (1, 3, 5, 7, 15):
            costs.learn(1, n_drafted, 0, PLAIN_US * (1 + 1.2 * n_drafted))

    assert pace.decode_us(1) == pytest.approx(2.2 * PLAIN_US)
    assert rows_of([certain], costs, most=15) == [0]


@pytest.mark.parametrize(("agreement", "least"), [(0.8, 2.35), (0.5, 1.4), (0.0, 0.95)])
def test_a_model_drafts_as_long_as_what_it_says_comes_true_often_enough(agreement: float, least: float) -> None:
    rng, pace, record, n_tokens, took_us = random.Random(5), Pace(), ModelRecord(), 0, 0.0
    pace.learn_decode(1, PLAIN_US)
    costs = RowCosts(pace, first_credit=64, most_credit=256)
    for _ in range(10):
        trust, n_left = ModelTrust(record), 120
        while n_left:
            chances = trust.chances(min(15, n_left - 1)) if costs.solvent else []
            (n_drafted,) = rows_of([chances], costs, most=15, drafting=[0.05]) if chances else (0,)
            if n_drafted:
                trust.begin()
            n_drafted = next((n for n in range(n_drafted) if not trust.goes_on(64.0)), n_drafted)
            n_accepted = next((n for n in range(n_drafted) if rng.random() >= agreement), n_drafted)
            step_us = PLAIN_US * (1 + 0.03 * n_drafted)
            if n_drafted:
                trust.learn(n_drafted, n_accepted)
                costs.pay(1, 0.05 * n_drafted * PLAIN_US)
                costs.learn(1, n_drafted, n_accepted, step_us)
            took_us += step_us + 0.05 * n_drafted * PLAIN_US
            n_left -= 1 + n_accepted
            n_tokens += 1 + n_accepted

    assert n_tokens * PLAIN_US / took_us > least
