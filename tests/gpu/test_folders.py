"""Folders on a real card: 4 bits load there, a batch says what each says alone, estimates are what the driver sees."""

from __future__ import annotations

from pathlib import Path

import pytest

import demo
from backends.engine import LoadError
from backends.messages import ChatPrompt, Generate, Sampling
from server.memory import gpu
from server.settings.config import ModelConfig
from tests.gguf.driver import run
from tests.gpu.conftest import Start
from tests.specs import spec_of

pytestmark = pytest.mark.gpu
SLACK_BYTES = 256 * 2**20
CITIES = ("France", "Italy", "Spain", "Japan")


@pytest.mark.parametrize("quantization", ["none", "bnb-4bit", "bnb-8bit"])
def test_a_batch_on_the_card_says_what_each_says_alone(quantization: str) -> None:
    from backends.bnb.loading import load

    spec = spec_of(
        "demo",
        "bnb",
        str(demo.HF_PATH),
        context=512,
        parallel=4,
        device="cuda",
        options={"quantization": quantization},
    )
    engine = load(spec, lambda _: None)
    jobs = [
        Generate(
            country,
            ChatPrompt([{"role": "user", "content": f"What is the capital of {country}?"}]),
            Sampling(temperature=0.0),
            max_tokens=20,
        )
        for country in CITIES
    ]

    alone = [run(engine, [job])[0].text() for job in jobs]
    together = [outcome.text() for outcome in run(engine, jobs)]
    engine.close()

    assert together == alone
    assert "Paris" in alone[0]


async def test_a_folders_price_is_what_the_driver_sees(start: Start) -> None:
    fields = {"path": str(demo.HF_PATH), "context": 2048, "quantization": "bnb-4bit"}
    before = (await gpu.memory()).free_bytes
    rig = await start({"demo": ModelConfig.model_validate(fields)})
    status = await rig.loaded("demo")
    held = before - (await gpu.memory()).free_bytes

    assert abs(held - (status.measured_bytes or 0)) <= SLACK_BYTES


async def test_cells_that_no_card_holds_are_refused_with_figures() -> None:
    from backends.bnb.loading import load

    card = await gpu.memory()
    context = 512 * (2 * card.total_bytes // (512 * 64 * 1024))  # at least 1 KiB for each cell of 64 rows
    spec = spec_of("demo", "bnb", str(Path(demo.HF_PATH)), context=context, parallel=64, device="cuda")

    with pytest.raises(LoadError, match=r"no memory is left for the KV cache: PyTorch asked for .* is free. hint"):
        load(spec, lambda _: None)
