"""The same engine on a real card: the same answers, and the bytes that the driver sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.gguf.loading import load
from server.memory import gpu
from tests.gguf.driver import run, text_job
from tests.models import canary_p
from tests.specs import spec_of

pytestmark = pytest.mark.gpu


def test_all_layers_on_the_card_give_the_golden_answers(canary_path: Path) -> None:
    spec = spec_of(name="canary", backend="gguf", path=str(canary_path), context=512, parallel=4, device="cuda")
    engine = load(spec, lambda _: None)
    jobs = [text_job("x" * 40 * i + c, max_tokens=30 + i) for i, c in enumerate("abcd")]

    outcomes = run(engine, jobs)
    ready = engine.ready()
    engine.close()

    assert [o.text() for o in outcomes] == [canary_p.expected_text(c, 30 + i) for i, c in enumerate("abcd")]
    assert ready.layers is not None
    assert ready.layers.on_card == ready.layers.total


async def test_the_driver_tells_the_cards_memory() -> None:
    card = await gpu.memory()

    assert 0 < card.free_bytes <= card.total_bytes
    assert card.name
