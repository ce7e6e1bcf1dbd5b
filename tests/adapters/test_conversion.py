"""`onecard quantize ADAPTER --to gguf`: what a folder computes with an adapter, a GGUF model computes with its file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import demo
from backends import registry
from quantize.adapter import convert, is_source
from quantize.errors import QuantizeError
from quantize.order import Order
from tests.adapters.passes import options, prompts_of, together
from tests.models import lora
from tests.quantize.conftest import Silent
from tests.specs import spec_of

BASE = Path(demo.GGUF_PATH)


def converted(source: Path, out: Path, **fields: Any) -> Path:
    return convert(Order(source, out, **{"types": ("gguf",), "base": BASE, **fields}), Silent())


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def test_names_heads_and_scale_are_those_of_the_base(tmp_path: Path) -> None:
    folder = lora.build_folder(tmp_path / "pirate", 1)

    made = converted(folder, tmp_path / "out")

    wanted = tensors_of(lora.as_gguf(folder, tmp_path / "wanted.gguf"))
    found = tensors_of(made)
    assert made == tmp_path / "out" / "pirate.gguf"
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert gguf.GGUFReader(made).fields["adapter.lora.alpha"].contents() == 16.0


def test_scales_of_their_own_go_into_the_matrices(tmp_path: Path) -> None:
    config: dict[str, Any] = {"use_rslora": True, "alpha_pattern": {"v_proj": 4}, "targets": ("o_proj", "v_proj")}
    folder = lora.build_folder(tmp_path / "a", 2, **config)

    made = converted(folder, tmp_path / "out")

    alpha = gguf.GGUFReader(made).fields["adapter.lora.alpha"].contents()
    stored, found = load_file(folder / "adapter_model.safetensors"), tensors_of(made)
    for layer, name, own in (("o_proj", "attn_output", 16), ("v_proj", "attn_v", 4)):
        b = stored[f"base_model.model.model.layers.2.self_attn.{layer}.lora_B.weight"]
        ours = found[f"blk.2.{name}.weight.lora_b"] * (alpha / 8)
        assert np.allclose(ours, b * (own / np.sqrt(8)), rtol=1e-6)


@pytest.mark.engine
def test_a_gguf_model_computes_with_the_file_what_the_folder_computes(tmp_path: Path) -> None:
    folder = lora.build_folder(tmp_path / "a", 3, rank=4, use_rslora=True, strength=0.03)
    adapters = {"bnb": folder, "gguf": converted(folder, tmp_path / "out")}
    prompt = prompts_of(3)[2]
    logits, plain = {}, {}
    for backend, base in (("bnb", demo.HF_PATH), ("gguf", BASE)):
        spec = spec_of("demo", backend, base, threads=1, options=options({"a": adapters[backend]}))
        engine: Any = registry.engine_of(backend)(spec, lambda _: None)
        (logits[backend],) = together(engine, [prompt], ["a"])
        (plain[backend],) = together(engine, [prompt], [""])
        engine.close()

    apart = np.abs(plain["gguf"] - plain["bnb"]).max()
    assert np.abs(logits["gguf"] - plain["gguf"]).max() > 1, "it changes what is computed"
    assert np.abs(logits["gguf"] - logits["bnb"]).max() < 0.1 + 2 * apart


@pytest.mark.parametrize(
    ("config", "sentence"), [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")]
)
def test_what_is_no_plain_lora_is_refused_and_nothing_is_left(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    folder = lora.rewrite(lora.build_folder(tmp_path / "a", 1), **config)

    with pytest.raises(QuantizeError, match=sentence):
        converted(folder, tmp_path / "out")

    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("config", [{"lora_alpha": 0}, {"alpha_pattern": {"down_proj": 0}}, {"lora_alpha": 1e-60}])
def test_a_scale_of_nothing_changes_nothing_and_the_others_keep_theirs(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = lora.build_folder(tmp_path / "a", 1, **config)

    made = converted(folder, tmp_path / "out")

    alpha = gguf.GGUFReader(made).fields["adapter.lora.alpha"].contents()
    stored, found = load_file(folder / "adapter_model.safetensors"), tensors_of(made)
    assert alpha, "llama.cpp takes 0 for none, and a scale of 1"
    for layer, name in (("mlp.down_proj", "ffn_down"), ("self_attn.o_proj", "attn_output")):
        own = config.get("lora_alpha", 0 if layer.endswith("down_proj") else 16)
        b = stored[f"base_model.model.model.layers.2.{layer}.lora_B.weight"]
        assert np.allclose(found[f"blk.2.{name}.weight.lora_b"] * alpha, b * own, rtol=1e-6)


@pytest.mark.parametrize("config", [{"alpha_pattern": {"v_proj": 3e38}}, {"use_rslora": True, "lora_alpha": 3e38}])
def test_a_scale_that_no_number_can_hold_is_told(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = lora.build_folder(tmp_path / "a", 1, strength=100, **config)

    with pytest.raises(QuantizeError, match=r"_proj comes to numbers that F32 cannot hold"):
        converted(folder, tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []


def test_another_models_adapter_and_wrong_orders_are_refused(tmp_path: Path) -> None:
    folder = lora.build_folder(tmp_path / "a", 1, targets=("q_proj",))
    from tests.adapters.test_files import resized, with_tensors

    assert is_source(folder)
    with pytest.raises(QuantizeError, match=r"hint: --base MODEL\.gguf"):
        converted(folder, tmp_path / "out", base=None)
    with pytest.raises(QuantizeError, match="hint: two runs"):
        converted(folder, tmp_path / "out", types=("gguf", "Q4_K_M"))
    with pytest.raises(QuantizeError, match=r"does not fit onecard-demo-f16\.gguf: it is made for 96 inputs"):
        converted(with_tensors(folder, resized("A", (8, 96))), tmp_path / "out")


def test_the_command_says_how_to_serve_what_it_has_made(tmp_path: Path) -> None:
    folder = lora.build_folder(tmp_path / "pirate", 1, targets=("v_proj",))
    command = [sys.executable, "-m", "server.cli", "quantize", str(folder), "--to", "gguf", "-o", str(tmp_path / "out")]

    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    made = subprocess.run([*command, "--base", str(BASE)], capture_output=True, text=True, check=False)

    assert (refused.returncode, made.returncode) == (2, 0), made.stderr
    assert "--base MODEL.gguf" in refused.stderr
    assert 'adapters = { pirate = "' in made.stderr
