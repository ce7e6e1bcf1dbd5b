"""Rows of images through a real engine: what it says depends on the image, and on nothing that runs or was kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_cpp import mtmd_cpp as mtmd

from backends.engine import AnyEngine, JobError
from tests.gguf.driver import Outcome, run
from tests.models import seeing
from tests.models.seeing import picture
from tests.seeing.driver import LAYOUT, MADE, Piece, build, look, open_seer

pytestmark = pytest.mark.engine

A, B, C = [7, 8, 9, 10], [11, 12, 13], list(range(20, 90))
WIDE, TALL = picture(1, width=300, height=120), picture(2, width=90, height=200)
ROUNDING = 1e-3
PROMPTS: list[list[Piece]] = [
    [A, WIDE, B],
    [A, TALL, B],
    [A, B],
    [WIDE, C, TALL, A],
    [C, WIDE, WIDE, B],
]


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(made: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp(made), made)


@pytest.fixture(scope="module")
def alone(model: Path) -> Iterator[list[Outcome]]:
    """What is said to each prompt when nothing else is there."""
    engine = open_seer(model, parallel=1)
    yield [run(engine, [look(pieces, cache_prompt=False)])[0] for pieces in PROMPTS]
    engine.close()


def said(outcome: Outcome) -> list[bytes]:
    assert outcome.finished.completion_tokens == 16
    return [entry.bytes for entry in outcome.logprobs()]


def alike(outcome: Outcome, expected: Outcome) -> None:
    """The same tokens, as likely as before: a pass of other length rounds in the seventh digit."""
    assert said(outcome) == said(expected)
    ours, theirs = ([entry.logprob for entry in one.logprobs()] for one in (outcome, expected))
    assert ours == pytest.approx(theirs, abs=ROUNDING)


def test_another_image_is_another_answer(alone: list[Outcome]) -> None:
    first = [outcome.logprobs()[0] for outcome in alone]
    assert len({(entry.bytes, entry.logprob) for entry in first}) == len(PROMPTS)


def test_answers_are_the_same_cold_shared_cached_and_restored(
    model: Path, alone: list[Outcome], made: str, tmp_path: Path
) -> None:
    def same(engine: AnyEngine, *, cached: bool) -> None:
        outcomes = run(engine, [look(pieces) for pieces in PROMPTS[:4]])
        outcomes += run(engine, [look(pieces) for pieces in PROMPTS[1:]])
        for number, outcome in enumerate(outcomes):
            alike(outcome, alone[number if number < 4 else number - 3])
        if cached:
            assert outcomes[-2].started.cached_tokens > len(C)

    engine = open_seer(model, layout=LAYOUT[made], store=tmp_path / "store")
    same(engine, cached=True)
    engine.close()
    engine = open_seer(model, layout=LAYOUT[made], store=tmp_path / "store")
    same(engine, cached=True)
    engine.close()


def test_a_preempted_prompt_goes_on_where_it_was(model: Path, alone: list[Outcome], tmp_path: Path) -> None:
    engine = open_seer(model, layout="unified", parallel=4, kv_tokens=256, context=256, store=tmp_path / "store")
    outcomes = run(engine, [look(pieces) for pieces in PROMPTS[:4]])
    for outcome, expected in zip(outcomes, alone, strict=False):
        alike(outcome, expected)
    engine.close()


def test_the_same_image_is_encoded_once(model: Path, tmp_path: Path) -> None:
    engine = open_seer(model, store=tmp_path / "store")
    first = run(engine, [look([C, WIDE, A], n_tokens=4)])[0]
    rows = first.started.prompt_tokens
    second = run(engine, [look([C, WIDE, A, B], n_tokens=4)])[0]
    assert second.started.prompt_tokens - second.started.cached_tokens < 64
    assert second.started.cached_tokens >= rows - len(A)
    engine.close()


def test_what_is_no_image_costs_its_own_request(model: Path) -> None:
    engine = open_seer(model)
    for data, told in (
        (b"no", "no image that can be read"),
        (WIDE[:200], "is broken"),
        (picture(3, width=2, height=900), "at most 200"),
    ):
        with pytest.raises(JobError, match=f"image 1 of the prompt .*{told}") as caught:
            engine.prepare(look([A, data, B]))
        assert caught.value.code == "unsupported_media"
    engine.close()


def test_rows_that_see_each_other_are_computed_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say is another thing where each row sees only those before it."""
    model = seeing.build(tmp_path, "whole")
    engine = open_seer(model)
    seen = run(engine, [look([A, WIDE, B])])[0].logprobs()
    engine.close()
    monkeypatch.setattr(mtmd, "mtmd_decode_use_non_causal", lambda *_: False)
    engine = open_seer(model)
    assert [entry.logprob for entry in run(engine, [look([A, WIDE, B])])[0].logprobs()] != [e.logprob for e in seen]
    engine.close()


def test_text_stands_behind_the_last_image(tmp_path: Path) -> None:
    engine = open_seer(seeing.build(tmp_path, "plain"))
    with pytest.raises(JobError, match="ends with an image"):
        engine.prepare(look([A, WIDE]))
    engine.close()
