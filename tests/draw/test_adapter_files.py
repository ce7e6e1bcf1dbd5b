"""Files of adapters for models that draw: names of three trainers, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from backends.diffusion.layer_names import foreign_names
from backends.files.adapters import Adapter, statuses
from backends.registry import BACKENDS
from server.settings.references import adapter_place
from tests.draw.conftest import Q

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
from demo.draw import PATH  # noqa: E402 - behind what is skipped
from tests.draw.lora import random_pairs  # noqa: E402

FLAT = Q.replace(".", "_")
SHAPE = (32, 32)
FIRST = tuple(f"lora_unet_{word}" for word in ("input", "middle", "out", "time_embed_", "label"))
WRITTEN: dict[str, tuple[str, str, str]] = {
    "diffusers": (f"unet.{Q}", "lora_A", "lora_B"),
    "diffusers of before": (f"unet.{Q}", "lora.down", "lora.up"),
    "diffusers of long before": (f"unet.{Q.replace('to_q', 'processor.to_q_lora')}", "down", "up"),
    "kohya": (f"lora_unet_{FLAT}", "lora_down", "lora_up"),
    "kohya's text": ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_down", "lora_up"),
    "diffusers' text": ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "lora_A", "lora_B"),
    "diffusers' text of before": ("text_encoder.encoder.layers.0.self_attn.q_proj", "lora_linear_layer.down",
                                  "lora_linear_layer.up"),
}  # fmt: skip


def described(path: Path) -> Adapter:
    (found,) = BACKENDS["diffusion"].describe(PATH, {"adapters": json.dumps({"style": str(path)})}).adapters
    return found


@pytest.mark.parametrize("case", WRITTEN)
def test_names_of_three_trainers_are_known(case: str, tmp_path: Path) -> None:
    layer, down, up = WRITTEN[case]
    shape = (48, 48) if "text" in layer else SHAPE
    found = described(random_pairs(tmp_path / "a.safetensors", {layer: shape}, down=down, up=up))
    assert (found.problem, found.rank, found.n_targets, found.n_values) == (None, 4, 1, 4 * sum(shape))


def test_peft_s_own_folder_is_known(tmp_path: Path) -> None:
    random_pairs(tmp_path / "adapter_model.safetensors", {f"base_model.model.{Q}": SHAPE})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    assert described(tmp_path).problem is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "use_dora": True}))
    assert "DoRA" in str(described(tmp_path).problem)


def test_the_first_names_of_xl_are_those_that_diffusers_converts(tmp_path: Path) -> None:
    """Given every layer of a U-Net in XL's shape, then its first name leads diffusers' own converter to that layer."""
    from diffusers.loaders import lora_conversion_utils as theirs

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, cross_attention_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=24, transformer_layers_per_block=(1, 1, 2),
        )  # fmt: skip
    layers = [
        f"unet.{name}" for name, layer in unet.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    first = {flat: layer for flat, (layer,) in foreign_names(layers, 2).items() if flat.startswith(FIRST)}
    assert set(first.values()) == set(layers)
    state = {f"{flat}.lora_{side}.weight": torch.ones(1) for flat in first for side in ("down", "up")}
    state = theirs._maybe_map_sgm_blocks_to_diffusers(state, unet.config)
    converted, _ = theirs._convert_non_diffusers_lora_to_diffusers(state)
    modern = {
        name.replace(".processor.to_", ".to_").replace("to_out_lora", "to_out.0.lora").replace("_lora.", ".lora.")
        for name in converted
    }
    assert {name.removesuffix(".lora.down.weight") for name in modern if name.endswith("down.weight")} == set(layers)


def changed(change: Callable[[dict[str, Any]], object], **noted: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tensors = dict(load_file(random_pairs(path, {f"unet.{Q}": SHAPE})))
        change(tensors)
        remarks = {f"unet.{key}": value for key, value in noted.items()}
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps(remarks)} if noted else None)

    return write


A, B = f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda _path: None, "there is no file or folder"),
    "no safetensors": (lambda path: path.write_text("a style"), "announces a header of"),
    "a cut file": (lambda path: path.write_bytes(random_pairs(path, {Q: SHAPE}).read_bytes()[:-9]), "cut or wrong"),
    "an empty file": (changed(dict.clear), "holds no matrices"),
    "another base": (
        changed(lambda t: t.update({B: torch.ones(40, 4)})),
        "4 x 32 and 40 x 4, and this model has 32 x 32",
    ),
    "a layer of another base": (
        lambda path: random_pairs(path, {"unet.down_blocks.7.conv": SHAPE}),
        "changes unet.down_blocks.7.conv, which is no layer of this model. hint: is it an adapter of this very base?",
    ),
    "kohya's of another base": (
        lambda path: random_pairs(path, {"lora_unet_down_blocks_7_conv": SHAPE}, down="lora_down", up="lora_up"),
        "changes lora_unet_down_blocks_7_conv, which is no layer",
    ),
    "of Flux": (lambda path: random_pairs(path, {"transformer.blocks.0.q": SHAPE}), "changes transformer.blocks.0.q"),
    "two ranks": (changed(lambda t: t.update({B: torch.ones(32, 5)})), "rank 4 and 5"),
    "half a pair": (changed(lambda t: t.pop(B)), "only one matrix of its pair"),
    "numbers": (changed(lambda t: t.update({A: torch.ones(4, 32, dtype=torch.int32)})), "is I32 4x32"),
    "a LoHa": (changed(lambda t: t.update({f"lora_unet_{FLAT}.hada_w1_a": torch.ones(2)})), "is a LoHa"),
    "a LoKr": (changed(lambda t: t.update({f"lora_unet_{FLAT}.lokr_w1": torch.ones(2)})), "is a LoKr"),
    "DoRA": (changed(lambda t: t.update({f"lora_unet_{FLAT}.dora_scale": torch.ones(2)})), "uses DoRA"),
    "DoRA by its remarks": (changed(lambda _t: None, r=4, lora_alpha=4, use_dora=True), "uses DoRA"),
    "another rank than it says": (changed(lambda _t: None, r=8, lora_alpha=4), "lora_adapter_metadata says 8"),
    "no scale": (changed(lambda t: t.update({f"unet.{Q}.alpha": torch.ones(3)})), "is F32 with 3 numbers"),
    "a scale of NaN": (changed(lambda t: t.update({f"unet.{Q}.alpha": torch.tensor(float("nan"))})), "is no number"),
    "whole layers": (changed(lambda t: t.update({f"unet.{Q}.diff": torch.ones(2)})), "replaces whole layers"),
    "other tensors": (changed(lambda t: t.update({"betas": torch.ones(2)})), "'betas', which is no matrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str, tmp_path: Path) -> None:
    write, sentence = REFUSED[case]
    write(tmp_path / "a.safetensors")
    assert sentence in str(described(tmp_path / "a.safetensors").problem)


def test_a_folder_is_what_its_one_file_is(tmp_path: Path) -> None:
    """Given a folder, then diffusers' name is taken, pickles are refused, and another file has to be named."""
    assert "neither pytorch_lora_weights.safetensors" in str(described(tmp_path).problem)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"")
    assert "are pickled (pytorch_lora_weights.bin)" in str(described(tmp_path).problem)
    assert "are pickled" in str(described(tmp_path / "pytorch_lora_weights.bin").problem)
    (tmp_path / "pytorch_lora_weights.bin").unlink()
    named = random_pairs(tmp_path / "style.safetensors", {f"unet.{Q}": SHAPE})
    assert f"hint: name the file: {tmp_path.name}/style.safetensors" in str(described(tmp_path).problem)
    options = {"adapters": json.dumps({"style": str(tmp_path)})}
    before = statuses(options)
    named.rename(tmp_path / "pytorch_lora_weights.safetensors")
    assert described(tmp_path).problem is None
    assert statuses(options) != before


def test_a_reference_is_the_one_file_of_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a repository as the sites of adapters have it, one file of any name, then that is the adapter."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--style"
    (repo / "snapshots/abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    file = random_pairs(repo / "snapshots/abc/Style_v3.safetensors", {f"unet.{Q}": SHAPE})
    assert adapter_place("hf:org/style") == str(file)
