"""Both backends answer on the card as they do without one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from backends.messages import Finished
from demo import GGUF_PATH, HF_PATH
from server.settings.config import ModelConfig
from tests.gpu.conftest import Start

pytestmark = pytest.mark.gpu
NEEDS = {"gguf": ("llama_cpp",), "bnb": ("torch", "transformers", "bitsandbytes", "accelerate")}


@pytest.mark.parametrize(("backend", "path"), [("gguf", GGUF_PATH), ("bnb", HF_PATH)])
async def test_the_demo_model_knows_the_capital(start: Start, backend: str, path: Path) -> None:
    if absent := [name for name in NEEDS[backend] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    rig = await start({"demo": ModelConfig(path=str(path), context=512)})

    text, end = await rig.ask("demo", "What is the capital of France?")

    assert isinstance(end, Finished), end
    assert text == "The capital of France is Paris."
    status = rig.status("demo")
    assert status.backend == backend
    assert (status.measured_bytes or 0) > 0
