"""What only Hugging Face folders have: Dense modules, prompts, bitsandbytes; and what is refused at the load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backends import registry
from backends.engine import Engine, LoadError
from backends.messages import Embed
from tests.embeddings import models
from tests.embeddings.driver import cosines, vectors
from tests.embeddings.models import TEXTS
from tests.specs import spec_of

pytestmark = pytest.mark.engine


@pytest.fixture
def load() -> Iterator[Callable[..., Engine]]:
    """Engines on folders, closed after the test."""
    loaded: list[Engine] = []

    def engine(folder: Path, **options: str) -> Engine:
        spec = spec_of(
            name="x", backend="bnb", path=str(folder), context=512, parallel=2, threads=1, options=dict(options)
        )
        loaded.append(registry.engine_of("bnb")(spec, lambda _: None))
        return loaded[-1]

    yield engine
    for one in loaded:
        one.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MiniLM in a folder of its own, whose weights are a link."""
    target = tmp_path / "minilm"
    shutil.copytree(models.minilm(), target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").symlink_to(models.minilm() / "model.safetensors")
    return target


def add_dense(folder: Path, activation: str) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(3)
    weight, bias = torch.randn(16, 384) * 0.2, torch.randn(16)
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    settings = {"in_features": 384, "out_features": 16, "bias": True, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    return weight.numpy(), bias.numpy()


def test_a_dense_module_follows_the_pooling(load, folder) -> None:
    plain = vectors(load(folder), TEXTS, normalize=False)
    weight, bias = add_dense(folder, "torch.nn.modules.activation.Tanh")

    found = vectors(load(folder), TEXTS)

    assert found.shape == (len(TEXTS), 16)
    assert cosines(found, np.tanh(plain @ weight.T + bias)).min() > 0.9999


def test_an_activation_from_the_folder_is_looked_up_and_never_run(load, folder) -> None:
    add_dense(folder, "os.system")
    with pytest.raises(LoadError, match=r"activation 'os\.system'"):
        load(folder)


def test_the_folders_prompt_stands_before_every_text(load, folder) -> None:
    told = {"prompts": {"search": "query: "}, "default_prompt_name": "search"}
    plain = vectors(load(folder), ["query: hello"])
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))

    assert cosines(vectors(load(folder), ["hello"]), plain).min() > 0.9999


@pytest.mark.parametrize(("quantization", "least"), [("bnb-8bit", 0.98), ("bnb-4bit", 0.9)])
def test_quantised_vectors_are_near_the_whole_ones(load, folder, quantization, least) -> None:
    engine = load(folder, quantization=quantization)
    found = vectors(engine, TEXTS)

    assert cosines(found, models.reference_vectors(folder, TEXTS, "mean")).min() > least
    assert engine.ready().parts["weights"] < 75e6


def test_a_classifier_is_no_reranker(load, made, tmp_path) -> None:
    target = shutil.copytree(made.folders["typed"], tmp_path / "classes")
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {"0": "good", "1": "bad", "2": "neither"}
    (target / "config.json").write_text(json.dumps(config))

    with pytest.raises(LoadError, match="3 classes"):
        load(target)


def test_an_encoder_without_modules_is_pooled_by_the_mean(load, folder) -> None:
    (folder / "modules.json").unlink()

    assert cosines(vectors(load(folder), TEXTS), models.reference_vectors(folder, TEXTS, "mean")).min() > 0.999


def test_a_way_to_vectors_that_is_not_known_is_named(load, folder) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(LoadError, match="none of mean"):
        load(folder)


def test_an_input_without_memory_fails_alone(load, folder, monkeypatch) -> None:
    engine = load(folder)
    encoder = engine._encoder
    run = encoder._run

    def scarce(inputs):
        if sum(one.ids.size for one in inputs) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(inputs)

    monkeypatch.setattr(encoder, "_run", scarce)
    engine.add(engine.prepare(Embed(id="fits", inputs=["a text of some words"] * 20)))
    engine.add(engine.prepare(Embed(id="large", inputs=["word " * 60])))
    ends: dict[str, Any] = {}
    while not engine.idle:
        ends |= {event.id: event for event in engine.step().events if not hasattr(event, "vectors")}

    assert ends["large"].code == "out_of_memory"
    assert "62 tokens" in ends["large"].message
    assert ends["fits"].prompt_tokens > 100
