"""Models that only the engine can judge are told at the start too, from a load without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.registry import TEST_ENGINE
from server.cli.checkup import broken
from server.cli.console import CliError
from server.cli.fit import show_fit
from server.metrics import Metrics
from server.pool.pool import Pool
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection, SchedulerSection
from tests.models.broken import TABLE
from tests.models.canary_p import build
from tests.pool.conftest import until

pytestmark = pytest.mark.engine

CASES = {case.name: case for case in TABLE if case.judge == "engine"}


@pytest.fixture(autouse=True)
def _real_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(TEST_ENGINE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))


def settings_of(folder: Path, *names: str) -> Settings:
    for name in names:
        (folder / f"{name}.gguf").write_bytes(CASES[name].make())
    build(folder / "sound.gguf")
    return Settings(
        memory=MemorySection(device="cpu"),
        scheduler=SchedulerSection(template_process=False),
        models={name: ModelConfig(path=str(folder / f"{name}.gguf"), context=256) for name in (*names, "sound")},
    )


def test_a_check_names_every_model_that_llama_cpp_would_refuse(tmp_path: Path) -> None:
    told = broken(Catalog(settings_of(tmp_path, *CASES)).entries)

    assert set(told) == set(CASES)
    assert told["layer_tensor_missing"].startswith("llama.cpp says: tensor 'blk.0.ffn_down.weight' not found. hint: ")
    assert not [name for name, why in told.items() if str(tmp_path) in why or len(why.split()) < 4]


async def test_a_started_server_says_it_and_serves_the_file_once_it_is_repaired(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "layer_tensor_missing")
    pool = Pool(settings, Catalog(settings), Metrics(list(settings.models)))
    told: list[tuple[str, object]] = []
    pool.on_change.append(lambda what, figures: told.append((what, figures.get("model"))))
    await pool.start()
    try:
        await until(lambda: ("unusable", "layer_tensor_missing") in told)
        assert "'blk.0.ffn_down.weight' not found" in (pool.info("layer_tensor_missing").unusable or "")
        assert pool.info("sound").unusable is None

        build(tmp_path / "layer_tensor_missing.gguf")
        await pool.look("layer_tensor_missing")
        assert pool.info("layer_tensor_missing").unusable is None
    finally:
        await pool.close(0)


def test_fit_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_of(tmp_path, "layer_tensor_missing")
    path = str(tmp_path / "layer_tensor_missing.gguf")
    with pytest.raises(CliError, match=r"tensor 'blk.0.ffn_down.weight' not found. hint: its metadata"):
        show_fit(path, others=[], asked={}, flags={"memory": {"device": "cpu"}}, config=None, as_json=True)
    show_fit(
        str(tmp_path / "sound.gguf"),
        others=[],
        asked={},
        flags={"memory": {"device": "cpu"}},
        config=None,
        as_json=True,
    )
    assert json.loads(capsys.readouterr().out)["fits"]
