"""`echo` with `logprobs` on the demo model, by both backends: the prompt's own log-probabilities, as transformers
computes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import demo
from backends import registry
from backends.engine import Engine
from backends.messages import Failed, Sampling, TokenPrompt
from backends.plan import SCORED_ROWS
from tests.gguf.driver import Outcome, run, step_until_idle, text_job
from tests.present import present
from tests.specs import spec_of

pytestmark = pytest.mark.engine

TOLERANCE = {"gguf": {"atol": 1e-2, "rtol": 1e-3}, "bnb": {"atol": 1e-4, "rtol": 0.0}}
"""llama.cpp multiplies F16 weights by F16 activations, which tells where a token is unlikely; the folder computes in
float32."""
OF_ALTERNATIVES = {"gguf": {"atol": 3e-2, "rtol": 0.0}, "bnb": TOLERANCE["bnb"]}
TEXT = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is "
    "Paris.<|im_end|>\n<|im_start|>user\nCount from 3 to 9, žluťoučký kůň 🦊!<|im_end|>\n<|im_start|>assistant\n3, 4, "
)
GREEDY = Sampling(temperature=0.0)


def load(backend: str, path: Path, **fields: object) -> Engine:
    spec = {"name": "demo", "backend": backend, "path": str(path), "context": 512, "parallel": 3, "threads": 1}
    return registry.engine_of(backend)(spec_of(**{**spec, **fields}), lambda _: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(backend: str, demo_model: Path) -> Iterator[Engine]:
    engine = load(backend, demo_model)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def truth() -> tuple[list[int], torch.Tensor]:
    """The ids of `TEXT`, and `(n, n_vocab)` log-probabilities of what follows each position."""
    tokens = AutoTokenizer.from_pretrained(demo.HF_PATH).encode(TEXT, add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(demo.HF_PATH, dtype=torch.float32)
    with torch.inference_mode():
        return tokens, torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1)


def scored(outcome: Outcome, n_prompt: int) -> list[float | None]:
    return [entry.logprob for entry in outcome.logprobs()[:n_prompt]]


def test_every_token_of_the_prompt_has_the_log_probability_it_has_in_transformers(
    engine: Engine, backend: str, truth: tuple[list[int], torch.Tensor]
) -> None:
    tokens, expected = truth
    (outcome,) = run(engine, [text_job(TEXT, max_tokens=0, echo=True, logprobs=3)])

    entries = outcome.logprobs()
    assert outcome.finished.prompt_tokens == len(entries) == len(tokens) > 4 * SCORED_ROWS
    assert entries[0].logprob is None
    assert outcome.text() == TEXT == b"".join(entry.bytes for entry in entries).decode()
    wanted = expected[torch.arange(len(tokens) - 1), tokens[1:]].numpy()
    scores = [present(e.logprob) for e in entries[1:]]
    np.testing.assert_allclose(scores, wanted, **TOLERANCE[backend])  # type: ignore[call-overload]
    best = expected[:-1].topk(3).values.numpy()
    told = [[present(other.logprob) for other in entry.top] for entry in entries[1:]]
    np.testing.assert_allclose(told, best, **OF_ALTERNATIVES[backend])  # type: ignore[call-overload]
    assert outcome.reason() == "length"


def test_an_answer_goes_on_behind_a_scored_prompt(engine: Engine) -> None:
    (plain,) = run(engine, [text_job(TEXT, max_tokens=5, sampling=GREEDY, logprobs=0)])
    (both,) = run(engine, [text_job(TEXT, max_tokens=5, sampling=GREEDY, logprobs=0, echo=True, n=2)])

    n_prompt = both.finished.prompt_tokens
    for index in (0, 1):
        assert both.text(index) == TEXT + plain.text()
    assert [e.token for e in both.logprobs()[n_prompt:]] == [e.token for e in plain.logprobs()]
    assert both.finished.completion_tokens == 2 * plain.finished.completion_tokens


def test_what_was_computed_before_is_of_no_use_and_harms_no_other(engine: Engine) -> None:
    (first,) = run(engine, [text_job(TEXT, max_tokens=0, echo=True, logprobs=0)])
    (_, again, stream) = run(
        engine,
        [
            text_job(TEXT, id="plain", max_tokens=1),
            text_job(TEXT, id="scored", max_tokens=1, echo=True, logprobs=0),
            text_job(TEXT, id="stream", max_tokens=30, sampling=GREEDY),
        ],
    )
    (alone,) = run(engine, [text_job(TEXT, id="alone", max_tokens=30, sampling=GREEDY)])

    n_prompt = first.finished.prompt_tokens
    np.testing.assert_allclose(scored(again, n_prompt)[1:], scored(first, n_prompt)[1:], atol=1e-2)  # type: ignore[arg-type]
    assert again.finished.cached_tokens == 0
    assert stream.text() == alone.text()


def test_tokens_that_hold_half_a_character_keep_their_bytes(engine: Engine) -> None:
    (outcome,) = run(engine, [text_job("a 🦊🦊", max_tokens=0, echo=True, logprobs=0)])
    tokens = engine.prepare(text_job("a 🦊🦊")).prompt.tolist()  # type: ignore[union-attr]
    by_ids = text_job("", id="ids", max_tokens=0, echo=True, logprobs=0)
    (same,) = run(engine, [msgspec.structs.replace(by_ids, prompt=TokenPrompt(tokens))])

    assert outcome.text() == same.text() == "a 🦊🦊"
    assert [e.bytes for e in outcome.logprobs()] == [e.bytes for e in same.logprobs()]
    assert "\N{REPLACEMENT CHARACTER}" in {e.token for e in outcome.logprobs()}


def test_one_token_has_no_probability(engine: Engine) -> None:
    (outcome,) = run(engine, [text_job("a", max_tokens=0, echo=True, logprobs=2)])

    assert [(e.token, e.logprob, e.top) for e in outcome.logprobs()] == [("a", None, [])]
    assert (outcome.text(), outcome.reason()) == ("a", "length")


def test_a_scored_job_can_be_cancelled(engine: Engine) -> None:
    outcome = Outcome()
    outcome.events += engine.add(engine.prepare(text_job(TEXT, id="gone", max_tokens=4, echo=True, logprobs=1)))
    outcome.events += engine.step().events
    outcome.events += engine.cancel("gone")
    step_until_idle(engine, {"gone": outcome})

    assert 0 < len(outcome.logprobs()) <= SCORED_ROWS + 1
    assert isinstance(outcome.end, Failed)


def test_scores_survive_a_preemption_for_want_of_room(backend: str, demo_model: Path) -> None:
    texts = [f"{TEXT}{word} {TEXT}" for word in ("one", "two", "three")]
    jobs = [
        text_job(text, id=text[-4:] + str(i), max_tokens=150, ignore_eos=True, sampling=GREEDY, echo=True, logprobs=0)
        for i, text in enumerate(texts)
    ]
    engine = load(backend, demo_model, kv_layout="unified", kv_tokens=512)
    together = run(engine, jobs)
    alone = [run(engine, [job])[0] for job in jobs]
    engine.close()

    assert sum(outcome.finished.preemptions for outcome in together) > 0
    for crowded, single in zip(together, alone, strict=True):
        n_prompt = single.finished.prompt_tokens
        assert len(crowded.logprobs()) == len(single.logprobs()) == n_prompt + 150
        assert crowded.text().startswith(texts[0][: len(TEXT)])
        np.testing.assert_allclose(scored(crowded, n_prompt)[1:], scored(single, n_prompt)[1:], atol=2e-2)  # type: ignore[arg-type]
