"""Models that draw in one file, with a folder of configurations: the same bytes, the same images, no network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.backend import HeaderError
from backends.diffusion.header import DrawHeader, read
from backends.diffusion.kind import Draw, DrawPlan
from backends.diffusion.layer_names import foreign_names
from backends.engine import LoadError
from backends.registry import BACKENDS, estimate, recognised
from server.settings.references import LocateError, locate
from tests.draw import sparse
from tests.draw.loading import loaded
from tests.draw.lora import random_pairs
from tests.draw.test_engine import drawn

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
from safetensors.torch import load_file, save_file  # noqa: E402 - behind what is skipped

from tests.draw import single  # noqa: E402

JOB = Draw("a", "a red background", 64, 64, seed=1, steps=2)


def networks(engine: Any) -> list[Any]:
    painter = engine._painter
    return [painter._denoiser, painter._vae, *(one.network for one in painter._encoders)]


def told(header: DrawHeader) -> list[tuple[str, tuple[int, ...]]]:
    """Names and numbers of the tensors; attention of autoencoders is stored as convolutions."""
    named = ((tensor.name.replace("text_model.", ""), tensor.n_elements) for tensor in header.tensors)
    return sorted((name, (n,)) for name, n in named)


@pytest.mark.parametrize("name", single.WRITERS)
def test_its_header_is_that_of_the_folder(name: str, folders: dict[str, Path], files: dict[str, Path]) -> None:
    """Given one file, then it is recognised, and names, numbers and bytes are those of the folder that it was."""
    found = recognised(files[name])
    assert found is not None
    assert (found[0].name, found[1].weights) == ("diffusion", (files[name],))
    header, folder = read(files[name]), read(folders[name])
    assert told(header) == told(folder)
    assert header.in_file == {"vae", header.family.denoiser, *header.text_encoders}
    plan = DrawPlan(parallel=1)
    assert estimate(header, plan).host == estimate(folder, plan).host


@pytest.mark.engine
@pytest.mark.parametrize("name", single.WRITERS)
def test_it_draws_what_the_folder_draws(name: str, folders: dict[str, Path], files: dict[str, Path]) -> None:
    """Given one file, then its weights are the folder's to the last bit, and its image is the folder's but for what
    rounding owes to their places in memory."""
    ours, theirs = loaded(files[name]), loaded(folders[name])
    for one, other in zip(networks(ours), networks(theirs), strict=True):
        wanted = other.state_dict()
        assert one.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in one.state_dict().items())
    assert np.abs(drawn(ours, JOB)[0] - drawn(theirs, JOB)[0]).max() <= 1


@pytest.mark.engine
def test_what_the_file_lacks_comes_from_the_folder(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """Given a file with a U-Net alone, as fine-tunes come, and a folder with the rest, then the two draw together; an
    adapter is held against the file's layers, and the plan counts both."""
    unet = {name: one for name, one in load_file(files["sd"]).items() if name.startswith(single.DENOISER)}
    save_file({name: one * 1.01 for name, one in unet.items()}, tmp_path / "tuned.safetensors")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    style = random_pairs(tmp_path / "style.safetensors", {f"unet.{layer}": (32, 32)})
    options = {"image_config": str(folders["sd"]), "adapters": json.dumps({"style": str(style)})}
    header = BACKENDS["diffusion"].describe(tmp_path / "tuned.safetensors", options)
    assert isinstance(header, DrawHeader)
    assert (header.in_file, header.adapters[0].problem) == ({"unet"}, None)
    assert told(header) == told(read(folders["sd"]))
    tuned = drawn(loaded(tmp_path / "tuned.safetensors", options=options), JOB)[0]
    assert np.abs(tuned - drawn(loaded(folders["sd"]), JOB)[0]).max() > 1


@pytest.mark.engine
def test_no_network_is_asked(files: dict[str, Path]) -> None:
    """Given a process that counts what it asks of a network, when it loads one file and draws, then it asks nothing."""
    command = [sys.executable, "-m", "tests.draw.no_network", str(files["xl"]), str(files["xl"].parent / "xl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["attempts"], told["n_bytes"] > 100) == ([], True)


def test_names_of_flux_are_those_that_diffusers_converts(tmp_path: Path) -> None:
    """Given Flux in its publisher's size, of which only the header exists, then diffusers' own converter makes of it
    the names and sizes that the header tells."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    folder = sparse.build(
        tmp_path / "flux", "FluxPipeline", {**sparse.FLUX_DEV, "num_layers": 2, "num_single_layers": 2}
    )
    ours = {
        tensor.name.removeprefix("transformer."): torch.empty(tensor.shape, device="meta", dtype=torch.float16)
        for tensor in read(folder).tensors
        if tensor.name.startswith("transformer.")
    }
    for prefix in (single.DENOISER, ""):
        theirs = single.joint(ours, prefix)
        file = sparse.header_of(tmp_path / "flux.safetensors", theirs)
        converted = convert_flux_transformer_checkpoint_to_diffusers(dict(theirs))
        header = read(file, {"image_config": "flux"})
        found = {one.name: one.shape for one in header.tensors if one.name.startswith("transformer.")}
        assert found == {f"transformer.{name}": tuple(tensor.shape) for name, tensor in converted.items()}
        assert header.in_file == {"transformer"}
        packed = DrawPlan(parallel=1, device="cuda", quantization="bnb-4bit")
        assert estimate(header, packed).device.weights == estimate(read(folder), packed).device.weights


def test_what_cannot_be_served_is_refused_by_name(files: dict[str, Path], tmp_path: Path) -> None:
    """Given a file without a folder, with another model's, for inpainting, with a network that is nowhere,
    or a folder with a key that is for files, then a sentence says which and what to do."""
    alone = shutil.copy(files["sd"], tmp_path / "alone.safetensors")
    tensors = load_file(alone)
    save_file(
        {**tensors, f"{single.DENOISER}input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)},
        tmp_path / "paint.safetensors",
    )
    save_file(
        {name: one for name, one in tensors.items() if not name.startswith("first_")}, tmp_path / "half.safetensors"
    )
    config = {"image_config": str(files["sd"].with_suffix(""))}
    fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    save_file({**load_file(files["xl"]), fused: torch.ones(())}, tmp_path / "rows.safetensors")
    odd = shutil.copytree(files["sd"].with_suffix(""), tmp_path / "odd")
    (odd / "text_encoder/config.json").write_text('{"num_hidden_layers": "three"}')
    cases: tuple[tuple[Path, dict[str, Any], str], ...] = (
        (
            tmp_path / "alone.safetensors",
            {},
            "a model in one file, which says nothing of .* hint: image_config = a folder",
        ),
        (tmp_path / "alone.safetensors", {"image_config": "not/there"}, "there is no folder .*not/there"),
        (tmp_path / "alone.safetensors", {"image_config": "~no-such-user/a"}, "cannot be looked at: Could not"),
        (tmp_path / "alone.safetensors", {"image_config": "a" * 300}, "cannot be looked at: .*too long"),
        (
            tmp_path / "alone.safetensors",
            {"image_config": str(files["xl"].with_suffix(""))},
            "of a StableDiffusionXLPipeline",
        ),
        (tmp_path / "paint.safetensors", config, "input_blocks.0.0.weight takes 9 channels and its folder's network 4"),
        (
            tmp_path / "rows.safetensors",
            {"image_config": str(files["xl"].with_suffix(""))},
            "has 0 rows, too few for 3",
        ),
        (tmp_path / "alone.safetensors", {"image_config": str(odd)}, "says no sound num_hidden_layers"),
        (tmp_path / "half.safetensors", config, "vae: .*no weights"),
        (files["sd"].with_suffix(""), {"image_config": "a"}, "image_config is for a model in one file"),
    )
    for path, options, sentence in cases:
        with pytest.raises(HeaderError, match=sentence):
            read(path, options)
    pickled = tmp_path / "pickled.ckpt"
    torch.save({"state_dict": {}}, pickled)
    with pytest.raises(LocateError, match="can run code when"):
        locate(str(pickled))


def test_numbers_of_a_hostile_header_cost_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    """Given blocks with a number of 5000 digits or of a milliard, then they are no layers, and are not counted to."""
    many = "9" * 5000
    odd = (f"first_stage_model.decoder.up.{many}.block.0.x", f"{single.DENOISER}input_blocks.{many}.0.op.weight")
    save_file({**load_file(files["sd"]), **{name: torch.ones(1) for name in odd}}, tmp_path / "odd.safetensors")
    config = {"image_config": str(files["sd"].with_suffix(""))}
    assert told(read(tmp_path / "odd.safetensors", config)) == told(read(files["sd"]))
    for name in (f"transformer.transformer_blocks.{'9' * 9}.norm1.linear", f"unet.down_blocks.{many}.resnets.0.conv1"):
        assert list(foreign_names({name}, 1).values()) == [(name,)]


@pytest.mark.engine
def test_a_file_with_more_than_its_folder_s_network_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """Given the folder of a smaller network of the same widths, then the file is not drawn with but for its last
    blocks."""
    names = {f"{single.DENOISER}input_blocks.{one}.weight": torch.ones(4) for one in ("98.0.in_layers.0", "99.0.op")}
    save_file({**load_file(files["sd"]), **names}, tmp_path / "more.safetensors")
    options = {"image_config": str(files["sd"].with_suffix(""))}
    with pytest.raises(LoadError, match="has 2 tensors of unet that its folder has no place for"):
        loaded(tmp_path / "more.safetensors", options=options)
