"""One file held against its folder before anything is loaded, and what the file says of its training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.backend import HeaderError
from backends.diffusion.header import read
from backends.diffusion.kind import Draw
from server.memory.files import key_of
from server.settings.catalog import Catalog
from server.settings.config import Settings
from tests.draw.loading import loaded
from tests.draw.test_engine import drawn

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
from safetensors.torch import load_file, save_file  # noqa: E402 - behind what is skipped

FLUX = "model.diffusion_model."
NOTHING: Mapping[str, Any] = {}
CLIP = "cond_stage_model.transformer.text_model."


def changed(
    file: Path, to: Path, change: Callable[[dict[str, Any]], object], more: Mapping[str, Any] = NOTHING, **noted: str
) -> Path:
    """A file with other tensors, and its folder beside it."""
    tensors = {**load_file(file), **more}
    change(tensors)
    save_file(tensors, to, metadata=noted or None)
    shutil.copytree(file.with_suffix(""), to.with_suffix(""), dirs_exist_ok=True)
    return to


def test_what_differs_is_told_by_the_file_s_own_names(
    files: dict[str, Path], families: dict[str, Path], tmp_path: Path
) -> None:
    """Given Flux for filling in, a block too many, layers that are missing or of another width, and a tensor twice,
    then a sentence names one by the file's name and says how many there are."""
    qkv, out = f"{FLUX}double_blocks.0.img_attn.qkv", f"{FLUX}final_layer.adaLN_modulation.1.weight"
    unet, third = f"{FLUX}input_blocks.1.1.proj_in.weight", f"{FLUX}joint_blocks.0.x_block.mlp.fc2"
    cases: tuple[tuple[str, Callable[[dict[str, Any]], object], str], ...] = (
        ("flux", lambda t: t.update({f"{FLUX}img_in.weight": torch.ones(32, 384)}),
         r"img_in.weight takes 384 channels and its folder's network 64: one is made for inpainting"),
        ("sd3", lambda t: t.update({f"{FLUX}x_embedder.proj.weight": torch.ones(32, 32, 2, 2)}),
         "x_embedder.proj.weight takes 32 channels and its folder's network 16"),
        ("flux", lambda t: [t.pop(f"{qkv}.{one}") for one in ("bias",)], "lacks 3 tensors .*img_attn.qkv.bias' among"),
        ("flux", lambda t: t.pop(out), "lacks 1 tensors .*final_layer.adaLN_modulation.1.weight' among"),
        ("flux", lambda t: t.update({"double_blocks.0.img_attn.qkv.bias": torch.ones(96)}),
         "holds a tensor twice, as model.diffusion_model.double_blocks.0.img_attn.qkv.bias and as double_blocks.0"),
        ("sd3", lambda t: [t.pop(f"{third}.{one}") for one in ("weight", "bias")], "lacks 2 .*x_block.mlp.fc2.weight"),
        ("sd", lambda t: t.update({unet: torch.ones(32, 31, 1, 1)}),
         r"1.1.proj_in.weight is 32 x 31 x 1 x 1 in the file, and 32 x 32 x 1 x 1 in its folder's unet \(1 such"),
        ("sd", lambda t: t.pop(unet), "lacks 1 tensors of its folder's unet, 'input_blocks.1.1.proj_in.weight'"),
        ("sd", lambda t: t.update({f"{CLIP}final_layer_norm.bias": torch.ones(0)}), "final_layer_norm.bias is 0 in"),
        ("sd", lambda t: t.pop("first_stage_model.decoder.conv_in.bias"), "lacks 1 .*'vae.decoder.conv_in.bias'"),
    )  # fmt: skip
    for name, change, sentence in cases:
        file = changed(files[name], tmp_path / "a.safetensors", change)
        with pytest.raises(HeaderError, match=sentence):
            read(file, {"image_config": str(files[name].with_suffix(""))})
    with pytest.raises(HeaderError, match=r"has 4 tensors of transformer that its folder has no place.*guidance_in"):
        read(files["flux"], {"image_config": str(families["schnell"])})
    bare = changed(files["flux"], tmp_path / "b.safetensors",
                   lambda t: [t.pop(one) for one in list(t) if "guidance_in" in one])  # fmt: skip
    with pytest.raises(
        HeaderError, match=r"lacks 4 tensors of its folder's transformer, 'guidance_in.in_layer.weight'"
    ):
        read(bare)


def test_names_that_files_may_leave_out_or_have_besides(files: dict[str, Path], tmp_path: Path) -> None:
    """Given CLIP without `text_model.` before its names, or with more layers than its folder uses, and a Flux with a
    CLIP that it does not use, then names and bytes are those of the file without."""

    def shortened(tensors: dict[str, Any]) -> None:
        for name in [one for one in tensors if one.startswith(CLIP)]:
            tensors[name.replace("text_model.", "")] = tensors.pop(name)
        tensors["cond_stage_model.transformer.encoder.layers.7.layer_norm1.bias"] = torch.ones(32)

    def with_another(tensors: dict[str, Any]) -> None:
        tensors["text_encoders.clip_g.transformer.text_model.final_layer_norm.bias"] = torch.ones(40)

    for name, change in (("sd", shortened), ("flux", with_another)):
        ours, theirs = read(changed(files[name], tmp_path / "a.safetensors", change)), read(files[name])
        shapes = [
            sorted((one.name.replace("text_model.", ""), one.shape) for one in header.tensors)
            for header in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]
        shutil.rmtree(tmp_path / "a")


@pytest.mark.engine
def test_a_file_says_what_its_network_predicts(files: dict[str, Path], tmp_path: Path) -> None:
    """Given files that say that their network predicts v, by a tensor or by a note, and a folder that says otherwise,
    then they draw as a folder does that says so, schedulers that begin with less noise are refused, and EDM is."""
    folder = shutil.copytree(files["xl"].with_suffix(""), tmp_path / "v")
    config = folder / "scheduler/scheduler_config.json"
    told = json.loads(config.read_text())
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    marks = {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}
    job = Draw("a", "a red background", 64, 64, seed=1, steps=2)
    cases: tuple[tuple[dict[str, Any], dict[str, str], dict[str, Any]], ...] = (
        (marks, {}, {"prediction_type": "v_prediction", **zero}),
        ({}, {"modelspec.predict_key": "v"}, {"prediction_type": "v_prediction"}),
    )
    for tensors, noted, wanted in cases:
        file = changed(files["xl"], tmp_path / "a.safetensors", len, tensors, **noted)
        config.write_text(json.dumps(told | wanted))
        ours, theirs = loaded(file), loaded(files["xl"], options={"image_config": str(folder), "image_size": "96x96"})
        assert read(file).about["predicts"] == "v_prediction"
        assert np.array_equal(drawn(ours, job)[0], drawn(theirs, job)[0])
        assert not np.array_equal(drawn(ours, job)[0], drawn(loaded(files["xl"]), job)[0])
        assert ("less noise than this model" in ours._defaults.failing.get("heun", "")) == bool(tensors)
    file = changed(files["xl"], tmp_path / "a.safetensors", lambda t: t.update({"edm_mean": torch.ones(4)}))
    with pytest.raises(HeaderError, match="holds edm_mean: it was trained with noise of another kind"):
        read(file)


@pytest.mark.parametrize("as_folder", [True, False])
def test_what_changes_beside_a_model_is_another_model(
    as_folder: bool,
    folders: dict[str, Path],
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Given a folder, or a file with its folder, when a file in a network's own folder changes or leaves, then the
    model is another one; without a change it is the same."""
    folder = shutil.copytree(folders["sd"], tmp_path / "a")
    path = folder if as_folder else Path(shutil.copy(files["sd"], tmp_path / "b.safetensors"))
    own = {} if as_folder else {"image_config": "a"}
    (entry,) = Catalog(Settings.model_validate({"models": {"artist": {"path": str(path), **own}}})).entries
    before = key_of(entry)
    assert key_of(entry) == before
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        config = folder / name
        config.write_text(config.read_text() + " ")
        assert key_of(entry) != before, name
        before = key_of(entry)
    (folder / "tokenizer/tokenizer_config.json").unlink()
    assert key_of(entry) != before
