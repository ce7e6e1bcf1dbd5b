"""`python -m bench embed` on a file named as in a shell: the server's gain beside llama.cpp's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import embed
from tests.embeddings.conftest import Models

pytestmark = pytest.mark.engine


def test_a_file_is_measured_with_and_without_a_server(made: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.files["minilm"]
    monkeypatch.chdir(path.parent)

    figures = embed.measure(Path(path.name), words=2, rounds=1)

    assert figures["least_cosine"] > 0.9999
    for side in ("", "alone_"):
        single, batch = figures[f"{side}single_texts_per_s"], figures[f"{side}batch_texts_per_s"]
        assert batch / single == pytest.approx(figures[f"{side}ratio"])
