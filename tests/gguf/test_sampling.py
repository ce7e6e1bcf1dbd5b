"""Sampling parameters change exactly what they say, on a model with logits 64 (successor) and 0 (rest)."""

from __future__ import annotations

import numpy as np
import pytest

from backends.engine import Engine
from backends.generation import sampling
from backends.messages import Sampling
from tests.gguf.driver import run, text_job
from tests.models import canary_p

pytestmark = pytest.mark.engine


def answer(engine: Engine, prompt: str, n: int, **fields: object) -> str:
    (outcome,) = run(engine, [text_job(prompt, max_tokens=n, sampling=Sampling(**fields))])  # type: ignore[arg-type]
    return outcome.text()


def successor(char: str) -> int:
    return canary_p.SUCCESSOR[canary_p.tokens_of(char)[-1]]


def level(char: str) -> dict[int, float]:
    """A bias that takes the successor of `char` down to a logit of 1, and lifts `B` to 0.5."""
    return {successor(char): -63.0, ord("B"): 0.5}


def test_greedy_is_the_best_logit(engine: Engine) -> None:
    assert answer(engine, "a", 20, temperature=0) == canary_p.expected_text("a", 20)


def test_a_bias_forces_a_token(engine: Engine) -> None:
    assert answer(engine, "a", 4, temperature=0, logit_bias={ord("Z"): 100.0}) == "ZZZZ"


def test_a_bias_forbids_a_token(engine: Engine) -> None:
    assert answer(engine, "a", 1, temperature=0, logit_bias={successor("a"): -100.0}) != canary_p.expected_text("a", 1)


def test_presence_penalises_what_the_output_has_and_not_the_prompt(engine: Engine) -> None:
    token = canary_p.PIECES[successor("a")].decode()

    assert answer(engine, token + "a", 1, temperature=0, presence_penalty=2.0, logit_bias=level("a")) == token


def test_frequency_penalty_grows_with_every_repetition(engine: Engine) -> None:
    text = answer(engine, "€", 300, temperature=0, frequency_penalty=2.0)

    assert text.startswith(canary_p.expected_text("€", 7 * 31))
    assert text != canary_p.expected_text("€", 300)


def test_repetition_penalises_what_the_prompt_has(engine: Engine) -> None:
    token = canary_p.PIECES[successor("a")].decode()

    assert answer(engine, "xa", 1, temperature=0, repetition_penalty=4.0, logit_bias=level("a")) == token
    assert answer(engine, token + "a", 1, temperature=0, repetition_penalty=4.0, logit_bias=level("a")) == "B"


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.99}])
def test_a_narrow_filter_leaves_the_best_token(engine: Engine, fields: dict[str, float]) -> None:
    assert answer(engine, "a", 10, temperature=2.0, **fields) == canary_p.expected_text("a", 10)


def flat(engine: Engine, seed: int | None, n: int = 24) -> str:
    """Sampled almost uniformly: at temperature 2 with the printable tokens lifted to the successor's height."""
    bias = dict.fromkeys(range(32, 127), 60.0)
    return answer(engine, "a", n, temperature=2.0, seed=seed, logit_bias=bias)


def test_a_seed_repeats_the_draw_and_another_seed_does_not(engine: Engine) -> None:
    assert flat(engine, 7) == flat(engine, 7)
    assert flat(engine, 7) != flat(engine, 8)
    assert flat(engine, -1) == flat(engine, -1)
    assert flat(engine, 2**63 - 1) != flat(engine, 2**31 - 1)


def test_without_a_seed_two_draws_differ(engine: Engine) -> None:
    assert flat(engine, None) != flat(engine, None)


def test_choices_of_one_seed_differ_from_each_other_and_repeat(engine: Engine) -> None:
    bias = dict.fromkeys(range(32, 127), 60.0)
    job = text_job("a", n=3, max_tokens=24, sampling=Sampling(temperature=2.0, seed=5, logit_bias=bias))

    (first,), (second,) = run(engine, [job]), run(engine, [job])

    texts = [first.text(i) for i in range(3)]
    assert len(set(texts)) == 3
    assert texts == [second.text(i) for i in range(3)]


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(engine: Engine) -> None:
    alone = flat(engine, 11)
    bias = dict.fromkeys(range(32, 127), 60.0)
    jobs = [
        text_job("a", id=i, max_tokens=24, sampling=Sampling(temperature=2.0, seed=s, logit_bias=bias))
        for i, s in enumerate([3, 11, 4])
    ]

    assert run(engine, jobs)[1].text() == alone


def test_a_draw_follows_the_distribution(engine: Engine) -> None:
    """Two tokens at logits ln 3 and 0 above a floor: the better one comes three times of four."""
    bias = {successor("a"): -64.0, ord("X"): 40.0 + float(np.log(3)), ord("Y"): 40.0}
    jobs = [text_job("a", n=100, max_tokens=1, sampling=Sampling(seed=seed, logit_bias=bias)) for seed in range(4)]

    texts = [outcome.text(i) for job in jobs for outcome in run(engine, [job]) for i in range(100)]

    assert set(texts) == {"X", "Y"}
    assert texts.count("X") / len(texts) == pytest.approx(0.75, abs=0.09)


def test_logprobs_are_a_log_softmax_with_the_best_first() -> None:
    row = np.array([1.0, 3.0, 2.0, -np.inf], dtype=np.float32)

    values, best = sampling.logprobs(row, 3)

    assert np.exp(values).sum() == pytest.approx(1.0, abs=1e-6)
    assert best.tolist() == [1, 2, 0]
    assert sampling.describe(3, values, best, lambda _: b"x", wrote=b"x").logprob == -9999.0


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300])
def test_the_smallest_temperatures_are_greedy(engine: Engine, temperature: float) -> None:
    assert answer(engine, "a", 20, temperature=temperature) == canary_p.expected_text("a", 20)
    assert answer(engine, "a", 20, temperature=temperature, presence_penalty=0.1) == canary_p.expected_text("a", 20)
