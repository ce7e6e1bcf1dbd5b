"""Vectors and scores of real engines, against transformers and against themselves alone."""

from __future__ import annotations

import numpy as np
import pytest

from backends.border.clerk import prepared
from backends.engine import Engine, JobError, LoadError
from backends.messages import ChatPrompt, Detokenize, Detokenized, Embed, Failed, Generate, Rerank, TextPrompt, Tokenize
from tests.embeddings import models
from tests.embeddings.driver import Outcome, cosines, run, scores, take, vectors
from tests.embeddings.models import TEXTS
from tests.present import present

pytestmark = pytest.mark.engine

QUERY = "Which river flows through Paris?"
DOCUMENTS = ["The Seine flows through Paris.", "Bread is baked at 220 degrees.", "Paris has many rivers? No.", "x" * 90]


POOLINGS = [("minilm", "mean"), ("last", "lasttoken"), ("mean", "mean")]


@pytest.mark.parametrize(("name", "pooling"), [*POOLINGS, ("bare", "lasttoken")])
def test_vectors_are_those_of_transformers(engine_of, made, backend, name, pooling) -> None:
    found = vectors(engine_of(name, backend), TEXTS)

    assert cosines(found, models.reference_vectors(made.folders[name], TEXTS, pooling)).min() > 0.999
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["minilm", "last", "mean"])
def test_a_batch_gives_each_text_what_it_gets_alone(engine_of, backend, name) -> None:
    _check_together(engine_of(name, backend))


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_a_file_of_f16_gives_the_vectors_of_transformers_alone_and_together(engine_of, made, name, pooling) -> None:
    engine = engine_of(f"{name} in F16", "gguf")

    found = vectors(engine, TEXTS)

    assert cosines(found, models.reference_vectors(made.folders[name], TEXTS, pooling)).min() > 0.999
    _check_together(engine)


def _check_together(engine: Engine) -> None:
    texts = [text * (1 + i % 3) for i, text in enumerate(TEXTS * 4)]

    together = vectors(engine, texts)
    alone = np.concatenate([vectors(engine, [text]) for text in texts])

    assert cosines(together, alone).min() > 0.9999


def test_inputs_of_many_jobs_share_a_pass(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    jobs = [Embed(id=f"job-{i}", inputs=["a few words", f"number {i}"]) for i in range(8)]
    for job in jobs:
        engine.add(engine.prepare(job))

    step = engine.step()

    assert step.n_inputs == 16
    assert {event.id for event in step.events} == {job.id for job in jobs}
    assert engine.idle


def test_a_large_job_does_not_hold_up_a_small_one(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    large = Embed(id="large", inputs=["some words that make a text of middle length " * 3] * 60)

    first, second = run(engine, [large, Embed(id="small", inputs=["hello"])])

    assert second.last_step == 1
    assert first.last_step > 2


def test_a_cancelled_job_is_gone_at_once_and_others_go_on(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    outcomes = {"gone": Outcome(), "stays": Outcome()}
    engine.add(engine.prepare(Embed(id="gone", inputs=["many words in a text " * 6] * 50)))
    engine.add(engine.prepare(Embed(id="stays", inputs=["many words in a text " * 6] * 10)))
    take(engine.step().events, outcomes)

    take(engine.cancel("gone"), outcomes)
    n_rows = len(outcomes["gone"].rows)
    while not engine.idle:
        take(engine.step().events, outcomes)

    end = outcomes["gone"].end
    assert isinstance(end, Failed)
    assert end.code == "cancelled"
    assert len(outcomes["gone"].rows) == n_rows < 50
    assert len(outcomes["stays"].rows) == 10
    assert engine.cancel("gone") == []


def test_a_text_of_the_full_context_is_read_to_its_end(engine_of, made, backend) -> None:
    text = " ".join(["word"] * 510)

    found = vectors(engine_of("minilm", backend), [text, "hello"])

    assert cosines(found[:1], models.reference_vectors(made.folders["minilm"], [text], "mean")).min() > 0.999


def test_a_text_that_is_too_long_is_named_and_never_cut(engine_of, backend) -> None:
    with pytest.raises(JobError, match=r"512 tokens.*input\[41\] resulted in 513 tokens") as refused:
        engine_of("minilm", backend).prepare(Embed(id="x", inputs=["short", " ".join(["word"] * 511)], first=40))
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("name", ["last", "mean"])
def test_a_decoder_reads_a_text_longer_than_a_pass(engine_of, made, backend, name) -> None:
    long = "What is the capital of France? The capital of France is Paris. " * 12
    engine = engine_of(name, backend)
    (outcome, beside) = run(engine, [Embed(id="long", inputs=[long]), Embed(id="beside", inputs=[TEXTS[0]])])

    pooling = "lasttoken" if name == "last" else "mean"
    expected = models.reference_vectors(made.folders[name], [long, TEXTS[0]], pooling)
    assert present(outcome.started).prompt_tokens > 128
    assert cosines(np.concatenate([outcome.vectors, beside.vectors]), expected).min() > 0.999


def test_token_ids_are_taken_as_they_are(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    tokenized, _ = engine.prepare(Tokenize(id="t", prompt=TextPrompt(TEXTS[0])))

    assert cosines(vectors(engine, [tokenized.tokens]), vectors(engine, [TEXTS[0]])).min() > 0.9999
    assert tokenized.tokens[0] == 101
    assert tokenized.tokens[-1] == 102
    with pytest.raises(JobError, match=r"input\[1\] holds token id 30522.*check_embedding_ctx_length=False"):
        engine.prepare(Embed(id="x", inputs=[[101], [30522]]))


def test_tokens_come_back_as_text(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    prompt = TextPrompt("hello world")
    plain, _ = engine.prepare(Tokenize(id="t", prompt=prompt, add_special=False, pieces=True))
    text, _ = engine.prepare(Detokenize(id="d", tokens=plain.tokens))

    assert len(plain.tokens) == len(plain.pieces) == 2
    assert isinstance(text, Detokenized)
    assert text.text.strip() == "hello world"


def test_dimensions_cut_and_scale_again(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    whole, cut = vectors(engine, TEXTS), vectors(engine, TEXTS, dimensions=32)

    assert cut.shape == (len(TEXTS), 32)
    assert np.allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)
    assert cosines(cut, whole[:, :32]).min() > 0.9999
    assert not np.allclose(np.linalg.norm(vectors(engine, TEXTS, normalize=False), axis=1), 1, atol=1e-2)
    with pytest.raises(JobError, match="384 dimensions, not 385"):
        engine.prepare(Embed(id="x", inputs=["x"], dimensions=385))


def test_a_special_token_in_a_text_stays_text(engine_of, backend) -> None:
    engine = engine_of("minilm", backend)
    tokenized, _ = engine.prepare(Tokenize(id="t", prompt=TextPrompt("a [SEP] b [CLS]")))

    assert tokenized.tokens.count(102) == 1
    assert tokenized.tokens.count(101) == 1


@pytest.mark.parametrize(
    ("name", "job", "match"),
    [
        ("minilm", Generate(id="x", prompt=TextPrompt("hi")), "embedding model.*POST /v1/embeddings"),
        ("minilm", Rerank(id="x", query="a", documents=["b"]), "embedding model.*POST /v1/embeddings"),
        ("minilm", Tokenize(id="x", prompt=ChatPrompt([{"role": "user", "content": "a"}])), "no chat template"),
        ("ranker", Embed(id="x", inputs=["hi"]), "reranker.*POST /v1/rerank"),
        ("ranker", Generate(id="x", prompt=TextPrompt("hi")), "reranker.*POST /v1/rerank"),
    ],
)
def test_another_kind_of_job_is_told_where_it_belongs(engine_of, backend, name, job, match) -> None:
    with pytest.raises(JobError, match=match):
        prepared(engine_of(name, backend), job)


def test_scores_are_those_of_transformers(engine_of, made, backend) -> None:
    name = "ranker" if backend == "gguf" else "typed"
    found = scores(engine_of(name, backend), QUERY, DOCUMENTS)

    expected = models.reference_scores(made.folders[name], QUERY, DOCUMENTS)
    assert np.abs(found - expected).max() < 2e-3
    assert np.ptp(expected) > 0.1


def test_a_pair_that_is_too_long_is_named(engine_of, backend) -> None:
    with pytest.raises(JobError, match=r"documents\[1\] with the query resulted in"):
        engine_of("ranker", backend).prepare(Rerank(id="x", query="a", documents=["b", "word " * 520]))


def test_a_reranker_that_llama_cpp_would_compute_wrongly_is_not_loaded(engine_of) -> None:
    with pytest.raises(LoadError, match=r"2 token types.*Hugging Face folder"):
        engine_of("typed", "gguf")
