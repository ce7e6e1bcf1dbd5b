"""Adapters of Stable Diffusion 3 and Flux by their publishers' names, as kohya's scripts and ComfyUI write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from backends.diffusion.adapter_files import checked, shapes_of
from backends.diffusion.header import read
from backends.diffusion.kind import Draw, DrawPlan
from backends.diffusion.layer_names import foreign_names
from backends.files.adapters import AdapterError
from backends.files.lora_values import read_floats
from tests.draw import sparse
from tests.draw.families import PROMPT
from tests.draw.loading import loaded
from tests.draw.lora import random_pairs
from tests.draw.test_engine import drawn

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
RANK = 5
"""No multiple of three: diffusers' converter takes others apart where most of them is 0."""


@pytest.fixture(scope="module")
def flux_shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """Of Flux.1 dev in its publisher's size."""
    return shapes_of(read(sparse.build(tmp_path_factory.mktemp("flux") / "f", "FluxPipeline", sparse.FLUX_DEV)).tensors)


def kohya(path: Path, shapes: Mapping[str, tuple[int, ...]], blocks: tuple[int, ...]) -> dict[str, Any]:
    """A file that changes all layers of some blocks, with scales of a half."""
    tensors = {}
    for name, layers in foreign_names(shapes, 0).items():
        numbers = [int(part) for part in name.split("_") if part.isdigit()]
        if not name.startswith("lora_unet_") or (numbers and numbers[0] not in blocks):
            continue
        n_in, n_out = shapes[layers[0]][1:], sum(shapes[layer][0] for layer in layers)
        if len(n_in) == 1:
            tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, *n_in)
            tensors[f"{name}.lora_up.weight"] = torch.randn(n_out, RANK)
            if "final_layer" not in name:  # whose scale diffusers' converter drops
                tensors[f"{name}.alpha"] = torch.tensor(RANK / 2)
    save_file(tensors, path)
    return tensors


def test_names_of_flux_are_those_that_diffusers_converts(flux_shapes: dict[str, Any], tmp_path: Path) -> None:
    """Given kohya's file of Flux, then each pair is what diffusers' own converter makes of it, to the last number."""
    from diffusers.loaders import lora_conversion_utils as theirs

    path = tmp_path / "kohya.safetensors"
    tensors = kohya(path, flux_shapes, (0, 18, 37))
    converted = theirs._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    wanted = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in converted.items()}
    pairs = checked(path, flux_shapes, 0)
    for pair in pairs:
        down, up = (torch.from_numpy(read_floats(tmp_path, side)) for side in (pair.a, pair.b))
        their_down, their_up = (wanted.pop(f"{pair.layer}.lora_{side}.weight") for side in "AB")
        assert pair.scale == (1.0 if pair.layer == "transformer.proj_out" else 0.5)
        assert torch.equal(their_down, down * pair.scale), pair.layer
        assert torch.equal(their_up, up), pair.layer
    assert not wanted


def test_all_layers_of_both_have_a_publisher_s_name(flux_shapes: dict[str, Any], families: dict[str, Path]) -> None:
    """Given real shapes and tiny ones, then what has no name is what diffusers has the other way round, and T5 has
    kohya's third name."""
    for shapes, turned in (
        (flux_shapes, {"norm_out.linear"}),
        (shapes_of(read(families["sd3"]).tensors), {"norm_out.linear", "transformer_blocks.1.norm1_context.linear"}),
    ):
        names = foreign_names(shapes, 0)
        known = {layer for name, layers in names.items() if name.startswith("lora_unet_") for layer in layers}
        layers = {layer for layer in shapes if layer.startswith("transformer.") and "pos_embed.pos" not in layer}
        assert layers - known == {f"transformer.{name}" for name in turned}
        assert any(name.startswith("lora_te3_encoder_block_0_layer_0_SelfAttention_q") for name in names)


@pytest.mark.engine
@pytest.mark.parametrize("shape", ["sd3", "flux"])
def test_an_image_is_that_of_the_same_adapter_in_diffusers_names(
    shape: str, families: dict[str, Path], tmp_path: Path
) -> None:
    """Given one adapter by kohya's names, by ComfyUI's and by diffusers', then they draw the same image, and another
    than the model alone."""
    theirs, ours, dotted = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    shapes = shapes_of(read(families[shape]).tensors)
    for name, layers in foreign_names(shapes, 0).items():
        if not name.startswith("diffusion_model.") or ".mlp" in name:
            continue
        rows = [shapes[layer][0] for layer in layers]
        down, up = torch.randn(4, *shapes[layers[0]][1:]) * 0.2, torch.randn(sum(rows), 4) * 0.2
        up = up if down.dim() == 2 else up[..., None, None]
        flat = name.replace("diffusion_model.", "lora_unet_").replace(".", "_")
        theirs |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        dotted |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        for layer, part in zip(layers, torch.split(up, rows), strict=True):
            ours |= {f"{layer}.lora_A.weight": down.clone(), f"{layer}.lora_B.weight": part.contiguous()}
    files = {"theirs": theirs, "ours": ours, "dotted": dotted}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths: Any = {one: tmp_path / f"{one}.safetensors" for one in files}
    engine = loaded(families[shape], DrawPlan(parallel=2), **paths)
    assert engine._ready.facts.adapters == dict.fromkeys(files, "")
    jobs = [Draw(one or "-", PROMPT, 64, 64, seed=1, steps=2, adapter=one) for one in ("", *files)]
    alone, *images = (drawn(engine, job)[0] for job in jobs)
    assert all(np.array_equal(image, images[0]) for image in images)
    assert not np.array_equal(alone, images[0])


def test_the_last_block_of_3_is_turned(families: dict[str, Path], tmp_path: Path) -> None:
    """Given what kohya trains of a Stable Diffusion 3's last block, then it is told as what diffusers has the other way
    round; of a block that is not there, as no layer."""
    shapes = shapes_of(read(families["sd3"]).tensors)
    for number, sentence in ((1, "halves diffusers has the other way round"), (7, "which is no layer of this model")):
        name = f"lora_unet_joint_blocks_{number}_context_block_adaLN_modulation_1"
        path = random_pairs(tmp_path / "a.safetensors", {name: (64, 32)}, down="lora_down", up="lora_up")
        with pytest.raises(AdapterError, match=sentence):
            checked(path, shapes, 0)


def test_a_layer_that_is_changed_twice_is_told(flux_shapes: dict[str, Any], tmp_path: Path) -> None:
    """Given a matrix and one of its layers, or one layer by two trainers' names, then both names are told."""
    qkv, q = "lora_unet_double_blocks_0_img_attn_qkv", "transformer.transformer_blocks.0.attn.to_q"
    proj = ("lora_unet_double_blocks_0_img_attn_proj", "diffusion_model.double_blocks.0.img_attn.proj")
    for names, layer in (((qkv, q), "attn.to_q"), (proj, "attn.to_out.0")):
        tensors: dict[str, Any] = {}
        for name in names:
            down, up = (".lora_down", ".lora_up") if name.startswith("lora_") else (".lora_A", ".lora_B")
            tensors[f"{name}{down}.weight"] = torch.ones(4, 3072)
            tensors[f"{name}{up}.weight"] = torch.ones(9216 if name == qkv else 3072, 4)
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(
            AdapterError, match=f"{layer} twice, by {names[0]}.* and by {names[1]}|{names[1]}.*{names[0]}"
        ):
            checked(tmp_path / "a.safetensors", flux_shapes, 0)


def test_what_does_not_fit_is_told(flux_shapes: dict[str, Any], tmp_path: Path) -> None:
    """Given rows that are another model's, or a layer that diffusers turns round, then a sentence says which."""
    cases = {
        "lora_unet_double_blocks_0_img_attn_qkv": ((9000, 3072), "has 9000 rows, and this model has 9216 there"),
        "lora_unet_final_layer_adaLN_modulation_1": ((6144, 3072), "halves diffusers has the other way round"),
        "lora_unet_double_blocks_19_img_attn_qkv": ((9216, 3072), "which is no layer of this model"),
    }
    for name, (shape, sentence) in cases.items():
        path = random_pairs(tmp_path / "a.safetensors", {name: shape}, down="lora_down", up="lora_up")
        with pytest.raises(AdapterError, match=sentence):
            checked(path, flux_shapes, 0)
