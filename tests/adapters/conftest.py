"""A server with the demo model and adapters of each backend: two that fit, one with NaN, one that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
from safetensors.numpy import load_file, save_file

from tests.e2e.server import Server, serving
from tests.models import lora


@dataclass
class Live:
    """A running server and the file it was configured by."""

    server: Server
    file: Path
    adapters: dict[str, Path]
    table: dict[str, Any]

    def configure(self, *names: str, **keys: Any) -> None:
        """Write the model's table with these adapters."""
        table = {**self.table, **keys, "adapters": {name: str(self.adapters[name]) for name in names}}
        self.file.write_text(tomlkit.dumps({"memory": {"device": "cpu"}, "models": {"demo": table}}))

    def reload(self) -> dict[str, Any]:
        kind: Any = object
        told: dict[str, Any] = self.server.client().post("/config/reload", body={}, cast_to=kind)
        return told

    def models(self) -> dict[str, dict[str, Any]]:
        return {model["id"]: model for model in self.server.get("/v1/models")["data"]}

    def ask(self, model: str, text: str, **fields: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        settings: Any = {"temperature": 0, "max_tokens": 16, **fields}
        return self.server.client().chat.completions.create(model=model, messages=messages, **settings)


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As peft saves them."""
    top = tmp_path_factory.mktemp("peft")
    made = {name: lora.build_folder(top / name, seed) for seed, name in enumerate(("pirate", "clerk", "nan"), 1)}
    weights = made["nan"] / "adapter_model.safetensors"
    tensors = dict(load_file(weights))
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = np.where(np.arange(tensors[name].size).reshape(tensors[name].shape) == 9, np.nan, tensors[name])
    save_file(tensors, weights)
    return made


@pytest.fixture(scope="module")
def live(
    backend: str, demo_model: Path, adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = adapter_folders
    if backend == "gguf":
        adapters = {name: lora.as_gguf(path, folder / f"{name}.gguf") for name, path in adapter_folders.items()}
    table = {"path": str(demo_model), "aliases": ["gpt-4o"], "parallel": 8, "context": 1024, "preload": True}
    running = Live(None, folder / "onecard.toml", {**adapters, "gone": folder / "gone"}, table)  # type: ignore[arg-type]
    running.configure("pirate", "clerk", "nan", "gone")
    flags = ("--config", str(running.file))
    with serving(folder, models={}, flags=flags) as server:
        running.server = server
        yield running
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
