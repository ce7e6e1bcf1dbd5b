"""The stored tensors decide, not what config.json or one version of a library says of them; folder and file alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import backends.bnb.header as folders
from backends.bnb.loading import load
from backends.bnb.weights import GENERATOR, Order, load_model
from backends.engine import LoadError
from backends.gguf import header
from quantize.errors import QuantizeError
from quantize.hf.convert import make_plan, write_plan
from quantize.hf.source import opened
from quantize.hf.tensor import Dtype
from tests.quantize import engine
from tests.quantize.zoo import build
from tests.specs import spec_of

pytestmark = pytest.mark.engine
Tensors = dict[str, torch.Tensor]
TOKENS = np.random.default_rng(3).integers(3, 250, 40).tolist()


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3", tmp_path_factory.mktemp("stored") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama2", tmp_path_factory.mktemp("stored") / "llama")


def changed(source: Path, target: Path, tensors: Callable[[Tensors], Tensors], **config: Any) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors(load_file(source / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    text = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({key: value for key, value in text.items() if value != "absent"}))
    return target


def converted(folder: Path) -> tuple[Path, tuple[str, ...]]:
    path = folder.with_suffix(".gguf")
    with opened(folder) as source:
        plan = make_plan(source, Dtype.F32)
        write_plan(plan, path)
    return path, plan.warnings


def served(folder: Path) -> np.ndarray:
    """The logits of the folder as the server loads it."""
    spec = spec_of("m", "bnb", str(folder), context=256, parallel=1)
    kind = replace(GENERATOR, attention=None)  # the server's own needs the server's passes
    model = load_model(spec, json.loads((folder / "config.json").read_text()), Order(), lambda _: None, kind)
    with torch.no_grad():
        return np.asarray(model(torch.tensor([TOKENS])).logits[0].float())


def quantised(path: Path) -> np.ndarray:
    with engine.loaded(path) as (model, context):
        return engine.logits(model, context, TOKENS)


def own_head(tensors: Tensors) -> Tensors:
    torch.manual_seed(5)
    return tensors | {"lm_head.weight": torch.randn_like(tensors["model.embed_tokens.weight"])}


def same_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def only_head(tensors: Tensors) -> Tensors:
    head = tensors["model.embed_tokens.weight"]
    return {name: value for name, value in tensors.items() if "embed_tokens" not in name} | {"lm_head.weight": head}


@pytest.mark.parametrize(
    ("change", "keeps", "remark"),
    [(own_head, True, "stored head is used"), (same_head, False, None), (only_head, False, "it is both")],
)
def test_a_stored_head_is_dropped_only_if_it_is_the_embedding(
    tied: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], keeps: bool, remark: str | None
) -> None:
    folder = changed(tied, tmp_path / "m", change)
    path, warnings = converted(folder)
    assert ("output.weight" in {tensor.name for tensor in header.read(path).tensors}) is keeps
    assert remark is None or remark in " ".join(warnings)
    assert bool(folders.read(folder).remarks) is keeps
    assert np.abs(served(folder) - quantised(path)).max() < 1e-3


def sorted_tensors(path: Path) -> list[Any]:
    return sorted(header.read(path).tensors, key=lambda tensor: tensor.name)


PREFIXES = ["", "language_model.model.", "model.language_model.", "0.auto_model.", "backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("base", ["qwen3", "llama2", "gemma3"])
def test_names_of_any_version_convert_to_the_same_file(tmp_path: Path, base: str, prefix: str) -> None:
    plain = build(base, tmp_path / "plain")
    renamed = changed(
        plain,
        tmp_path / "renamed",
        lambda tensors: {
            prefix + name.removeprefix("model.") if name.startswith("model.") else name: value
            for name, value in tensors.items()
        },
    )
    one, other = converted(plain)[0], converted(renamed)[0]
    assert sorted_tensors(one) == sorted_tensors(other)
    assert np.array_equal(quantised(one), quantised(other))


def test_two_bodies_in_one_folder_are_not_guessed_at(llama: Path, tmp_path: Path) -> None:
    def twice(tensors: Tensors) -> Tensors:
        embedding = tensors.pop("model.embed_tokens.weight")
        return tensors | {"a.embed_tokens.weight": embedding, "b.embed_tokens.weight": embedding.clone()}

    with pytest.raises(QuantizeError, match=r"2 tensors are called embed_tokens\.weight"):
        converted(changed(llama, tmp_path / "m", twice))


def with_biases(tensors: Tensors) -> Tensors:
    torch.manual_seed(6)
    names = [name for name in tensors if name.endswith("_proj.weight") and "self_attn" in name]
    return tensors | {n.replace(".weight", ".bias"): torch.randn(tensors[n].shape[0]) * 0.3 for n in names}


@pytest.mark.parametrize(
    ("change", "config", "remark"),
    [
        (with_biases, {"attention_bias": False}, "attention_bias"),
        (dict, {"vocab_size": 9}, "vocab_size = 9"),
        (dict, {"head_dim": "absent"}, None),
        (dict, {"architectures": "absent"}, None),
        (dict, {"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
    ],
    ids=["biases", "rows", "head width", "no architecture", "another architecture"],
)
def test_folder_and_file_follow_the_tensors(
    llama: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], config: dict[str, Any], remark: str | None
) -> None:
    folder = changed(llama, tmp_path / "m", change, **config)
    path, warnings = converted(folder)
    assert remark is None or remark in " ".join(warnings)
    assert np.abs(served(folder) - quantised(path)).max() < 1e-3


def test_a_type_that_is_not_the_stored_one_is_told(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "m", lambda all_: {n: t.bfloat16() for n, t in all_.items()}, dtype="float16")
    info = folders.read(folder)
    assert "dtype = float16, which is taken, and the weights are stored in bfloat16" in info.remarks[0]


@pytest.mark.parametrize(
    ("change", "config", "sentence"),
    [
        (dict, {"num_hidden_layers": 2}, r"model\.layers\.2"),
        (lambda all_: all_ | {"model.layers.0.self_attn.q_norm.bias": torch.zeros(4)}, {}, None),
        (lambda all_: all_ | {"model.layers.0.self_attn.o_proj.bias": torch.zeros(64)}, {}, r"o_proj\.bias"),
    ],
    ids=["a layer more", "a norm that is not computed", "one bias"],
)
def test_tensors_that_the_class_would_leave_out_are_refused(
    llama: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], config: dict[str, Any], sentence: str | None
) -> None:
    folder = changed(llama, tmp_path / "m", change, **config)
    if sentence is None:
        served(folder)  # a part whose module does not exist may be another task's
        return
    with pytest.raises(LoadError, match=sentence):
        load(spec_of("m", "bnb", str(folder), context=256, parallel=1), lambda _: None)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"head_dim": 8}, "heads of 8"),
        ({"intermediate_size": 96}, "intermediate_size = 96"),
        ({"num_key_value_heads": 1}, "1 heads of 16 for keys"),
        ({"is_causal": False}, "is_causal"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ],
)
def test_sizes_that_contradict_the_tensors_are_refused(
    llama: Path, tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(QuantizeError, match=sentence):
        converted(changed(llama, tmp_path / "m", dict, **config))
