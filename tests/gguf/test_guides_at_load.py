"""What constraints need of a vocabulary is made while a model loads, because Python stands still meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from backends import registry
from backends.constraints.vocabulary import ConstraintVocabulary
from backends.messages import Pattern
from tests.gguf.driver import run, text_job
from tests.specs import spec_of

pytestmark = pytest.mark.engine


def test_the_first_constraint_makes_no_vocabulary(
    backend: str, canary_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(name="m", backend=backend, path=str(canary_model), context=256, parallel=1, threads=1)
    engine = registry.engine_of(backend)(spec, lambda _: None)

    def late(_: ConstraintVocabulary) -> NoReturn:
        raise AssertionError("the vocabulary was made after the load")

    monkeypatch.setattr(ConstraintVocabulary, "tokenizer", late)
    (outcome,) = run(engine, [text_job("x", constraint=Pattern("[ab]{3}"), max_tokens=8)])
    engine.close()

    assert set(outcome.text()) <= {"a", "b"}
    assert len(outcome.text()) == 3
