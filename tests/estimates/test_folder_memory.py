"""Folders under a real pool: the first estimate is what the worker takes, whether its weights are copied or mapped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.machine import host
from server.metrics import Metrics
from server.pool.pool import Pool
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from tests.quantize.conftest import make
from tests.quantize.zoo import build

pytestmark = pytest.mark.engine

MIB = 2**20


async def test_the_first_price_of_a_folder_is_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    wide = build("llama3", tmp_path / "wide", hidden_size=512, intermediate_size=8192, num_hidden_layers=4)
    (stored,) = make(wide, tmp_path, "bnb-8bit", name="stored").written
    models = {
        "plain": ModelConfig(path=str(wide), context=512),
        "copied": ModelConfig.model_validate({"path": str(wide), "context": 512, "quantization": "bnb-8bit"}),
        "mapped": ModelConfig(path=str(stored), context=512),
    }
    settings = Settings(models=models, memory={"device": "cpu"})  # type: ignore[arg-type]
    pool = Pool(settings, Catalog(settings), Metrics(list(models)))
    await pool.start()
    try:
        async with asyncio.timeout(120):
            for name in models:
                await pool.load(name)
        found = {model.name: model for model in pool.status().models}
        held = {name: host.anonymous_bytes(model.pid or 0) for name, model in found.items()}
    finally:
        await pool.close(0)

    for name, model in found.items():
        assert model.prediction_error is not None
        assert abs(model.prediction_error) <= 0.05, name
        mapped = model.parts["weights"] if name == "mapped" else 0
        assert held[name] + mapped <= (model.measured_bytes or 0) + 8 * MIB, name
    assert held["copied"] < held["plain"]
