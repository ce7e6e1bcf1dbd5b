"""How many threads the children of `onecard quantize` have, and how long these wait for each other."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from quantize.child import environment
from quantize.scores.compare import compare
from tests.quantize.conftest import GGUF


@pytest.mark.parametrize("told", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_sleep_soon_unless_the_operator_says_otherwise(told: dict[str, str]) -> None:
    assert environment({"HOME": "/h"}) == {"HOME": "/h", "GOMP_SPINCOUNT": "20000", "GGML_NO_BACKTRACE": "1"}
    assert environment(told) == {**told, "GGML_NO_BACKTRACE": "1"}


@pytest.mark.engine
def test_as_many_threads_score_as_were_asked_for(text: Path) -> None:
    def seen(threads: int) -> int:
        counts: list[int] = []

        def look(*_progress: float) -> None:
            counts.extend(child.num_threads() for child in psutil.Process().children())

        compare(GGUF, GGUF, text, n_ctx=64, most_windows=1, threads=threads, progress=look)
        return max(counts)

    assert seen(4) == seen(1) + 3
