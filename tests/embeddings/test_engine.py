"""The engine's own rules, over an encoder of three lines: what fails alone, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from backends.messages import Embed, EncoderFacts, Failed, Finished, Ready
from backends.vectors.engine import EmbeddingEngine, Input, NoRoomError, finish
from tests.embeddings.driver import run, vectors

POISON, BOULDER = 66, 88
"""Tokens of the letters B and X: numbers that are none, and an input there is no memory for."""


class LetterEncoder:
    """A token is a byte; a vector is its first byte, how many there are, and 1."""

    max_tokens, max_inputs, padded, reranks, width = 12, 8, False, False, 3

    def ready(self) -> Ready[EncoderFacts]:
        return Ready(EncoderFacts(context=16, n_ctx_train=16, n_vocab=256), parallel=2, measured_bytes=0)

    def text(self, text: str, *, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def pair(self, query: str, document: str) -> Input:
        raise AssertionError("it ranks nothing")

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()

    def pieces(self, tokens: list[int]) -> list[bytes]:
        return [bytes([token]) for token in tokens]

    def encode(self, inputs: Sequence[Input]) -> np.ndarray:
        if any(BOULDER in one.ids for one in inputs):
            raise NoRoomError("no memory is left for an input of 5 tokens")
        rows = [[one.ids[0], one.ids.size, 1] for one in inputs]
        return np.array([[np.nan] * 3 if POISON in row else row for row in rows], dtype=np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def engine() -> EmbeddingEngine:
    return EmbeddingEngine(LetterEncoder())


def test_rows_come_back_in_the_order_of_the_inputs(engine):
    rows = vectors(engine, ["a", "bb", "cccccc", "d" * 16, "e"], normalize=False)

    assert rows.tolist() == [[97, 1, 1], [98, 2, 1], [99, 6, 1], [100, 16, 1], [101, 1, 1]]


def test_numbers_that_are_none_fail_their_own_job(engine):
    broken, sound = run(engine, [Embed(id="broken", inputs=["a", "B"]), Embed(id="sound", inputs=["a", "b"])])

    assert isinstance(broken.end, Failed)
    assert broken.end.code == "internal_error"
    assert isinstance(sound.end, Finished)


def test_want_of_memory_fails_its_own_job(engine):
    large, beside = run(engine, [Embed(id="large", inputs=["XXXXX"]), Embed(id="beside", inputs=["a"] * 40)])

    assert isinstance(large.end, Failed)
    assert large.end.code == "out_of_memory"
    assert "5 tokens" in large.end.message
    assert beside.vectors.shape == (40, 3)


def test_a_job_beyond_the_room_is_refused_and_not_kept(engine):
    jobs = [Embed(id=str(i), inputs=["a"]) for i in range(3)]
    answers = [engine.add(engine.prepare(job)) for job in jobs]

    assert isinstance(answers[2][0], Failed)
    assert engine.step().n_inputs == 2
    assert engine.idle


def test_closing_forgets_what_waits(engine):
    engine.add(engine.prepare(Embed(id="a", inputs=["a"])))
    engine.close()
    assert engine.idle


def test_a_vector_of_zeros_stays_one():
    rows = np.array([[0, 0, 0], [3, 4, 12]], dtype=np.float32)

    assert finish(rows, dimensions=2, normalize=True).tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert finish(rows, dimensions=None, normalize=False) is not None
    assert finish(rows, dimensions=None, normalize=True).dtype == np.float32
