"""Weights that compute no numbers for a text: its request is told so, and no other notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.engine import Engine
from backends.messages import Failed, Sampling
from tests.gguf.driver import run, text_job
from tests.models import canary_p
from tests.specs import spec_of

BROKEN = "x"
"""The token whose embedding is no number."""


@pytest.fixture
def damaged(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    sound = canary_p._tensors

    def tensors() -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        made = sound()
        made["token_embd.weight"][canary_p.IDS[BROKEN.encode()]] = np.nan
        return made

    monkeypatch.setattr(canary_p, "_tensors", tensors)
    build = canary_p.build if backend == "gguf" else canary_p.build_folder
    path = build(tmp_path / ("model.gguf" if backend == "gguf" else "model"))
    engine = registry.engine_of(backend)(
        spec_of(name="damaged", backend=backend, path=str(path), context=128, parallel=4, threads=1), lambda _: None
    )
    yield engine
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_without_numbers_is_told_and_its_neighbours_go_on(damaged: Engine, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=3)
    jobs = [text_job(prompt, max_tokens=8, sampling=sampling, logprobs=2) for prompt in ("a", f"a{BROKEN}b", "c")]

    first, broken, last = run(damaged, jobs)

    assert isinstance(broken.end, Failed)
    assert (broken.end.code, "computes no numbers" in broken.end.message) == ("internal_error", True)
    assert [first.text(), last.text()] == [canary_p.expected_text("a", 8), canary_p.expected_text("c", 8)]
