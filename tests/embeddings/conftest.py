"""The models of this folder, made once, and an engine on each, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends import registry
from backends.engine import Engine
from tests.embeddings import models
from tests.once import once
from tests.specs import spec_of


@dataclass(frozen=True)
class Models:
    """Folders by name, and the same as GGUF files where llama.cpp can serve them, some of those in F16 too."""

    folders: dict[str, Path]
    files: dict[str, Path]

    def path(self, name: str, backend: str) -> Path:
        return self.files[name] if backend == "gguf" else self.folders[name]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return once(tmp_path_factory, "embeddings", make)


def make(out: Path) -> Models:
    folders = {
        "minilm": models.minilm(),
        "last": models.decoder(out / "last", "lasttoken"),
        "bare": models.bare_decoder(out / "bare"),
        "mean": models.decoder(out / "mean", "mean_tokens"),
        "ranker": models.reranker(out / "ranker", n_types=1),
        "typed": models.reranker(out / "typed", n_types=2),
    }
    files = {name: models.to_gguf(folders[name], out, "F32") for name in ("minilm", "last", "mean", "bare")}
    files |= {f"{name} in F16": models.to_gguf(folders[name], out, "F16") for name in ("minilm", "last", "mean")}
    files |= {name: models.reranker_gguf(folders[name], out) for name in ("ranker", "typed")}
    return Models(folders, files)


@pytest.fixture(scope="session")
def engine_of(made: Models) -> Iterator[Callable[[str, str], Engine]]:
    """The engine of a model under a backend, loaded once."""
    loaded: dict[tuple[str, str], Engine] = {}

    def engine(name: str, backend: str) -> Engine:
        if (name, backend) not in loaded:
            path = str(made.path(name, backend))
            spec = spec_of(name=name, backend=backend, path=path, context=512, parallel=2, threads=1)
            loaded[name, backend] = registry.engine_of(backend)(spec, lambda _: None)
        return loaded[name, backend]

    yield engine
    for one in loaded.values():
        one.close()
