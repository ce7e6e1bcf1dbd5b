"""What a folder that draws says about itself, what of it is refused, and the bytes it is taken to need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.backend import HeaderError
from backends.diffusion.arithmetic import LAYOUT_BYTES, UPLOAD_BYTES
from backends.diffusion.header import DrawHeader, read
from backends.diffusion.kind import SCHEDULERS, DrawPlan
from backends.diffusion.options import NamedScheduler
from backends.plan import Wish
from backends.registry import BACKENDS, estimate, recognised


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "model")


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_is_recognised(folder: Path) -> None:
    found = recognised(folder)
    assert found is not None
    assert found[0].name == "diffusion"
    assert {file.parent.name for file in found[1].weights} == {"text_encoder", "unet", "vae"}
    header = read(folder)
    assert (header.size, header.largest, header.scale, header.scheduler) == ((64, 64), (64, 64), 8, "ddim")
    assert BACKENDS["diffusion"].claims("runwayml/stable-diffusion-v1-5")


def test_weights_are_exact_and_images_grow_with_their_pixels(folder: Path) -> None:
    """Given sizes and numbers of images, then weights are those of the files, and activations grow with the pixels."""
    stored = sum(tensor.n_bytes for tensor in read(folder).tensors)
    by_size = {}
    for size in ("64x64", "256x256", "512x512"):
        header = read(folder, {"image_size": size})
        parts = estimate(header, DrawPlan(parallel=2)).host
        assert parts.weights == 2 * stored  # the files have 16 bits, a processor computes in 32
        wide = sum(tensor.n_bytes for tensor in header.tensors if tensor.name.startswith("vae."))
        assert estimate(header, DrawPlan(device="cuda", parallel=2)).device.weights == stored + wide  # `force_upcast`
        by_size[size] = parts.compute - UPLOAD_BYTES - LAYOUT_BYTES["cpu"]
    assert by_size["512x512"] == pytest.approx(4 * by_size["256x256"], rel=0.01)
    header = read(folder, {"image_size": "512x512"})
    one, four = (estimate(header, DrawPlan(device="cuda", parallel=n)).device.compute for n in (1, 4))
    assert one <= four <= 4 * one


def test_tiles_come_last(folder: Path) -> None:
    """Given images of more than a tile, then a plan that decodes in tiles is there, behind those that do not."""
    backend = BACKENDS["diffusion"]
    wish = Wish(None, 4, "f16", None, "cpu", frozenset({"parallel"}))
    plans = list(backend.plans(read(folder, {"image_size": "1024x512"}), wish))
    ladder = dict.fromkeys((plan.parallel, plan.sliced, plan.tiled) for plan in plans)
    assert [*ladder] == [*((n, sliced, False) for n in (4, 2, 1) for sliced in (False, True)), (1, True, True)]
    needs = [estimate(read(folder, {"image_size": "1024x512"}), plan).host.compute for plan in plans]
    assert needs[-1] < needs[-2]
    one_tile: dict[str, bool | int | float | str] = {"image_size": "512x512"}
    for options in (one_tile, {**one_tile, "image_tiled": True}):
        assert not any(plan.tiled for plan in backend.plans(read(folder, options), wish))


def _pickled(folder: Path, part: str = "unet") -> None:
    file = folder / part / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (
        lambda f: edited(f / "model_index.json", _class_name="AuraFlowPipeline"),
        "says AuraFlowPipeline",
    ),
    "code of its own": (lambda f: edited(f / "model_index.json", _class_name=["evil", "Pipe"]), "onecard draws with"),
    "a strange encoder": (lambda f: edited(f / "model_index.json", text_encoder=["os", "system"]), "is system, and"),
    "a strange scheduler": (lambda f: edited(f / "scheduler/scheduler_config.json", _class_name="X"), "is X, and"),
    "a pickle": (_pickled, "unet: the weights are pickled"),
    "no weights": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(),
        "vae: the folder has no weights",
    ),
    "no vocabulary": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "no tokenizer/vocab.json"),
    "no index": (lambda f: (f / "model_index.json").write_text("{"), "is not JSON"),
    "a lie": (lambda f: edited(f / "unet/config.json", in_channels=-4), "no sound in_channels"),
    "half a lie": (lambda f: edited(f / "unet/config.json", sample_size=[8, "x"]), "no sound sample_size"),
    "a list of no class": (lambda f: edited(f / "model_index.json", text_encoder=["a", ["b"]]), "reads prompts with"),
    "widths": (lambda f: edited(f / "vae/config.json", block_out_channels=["a"]), "no sound block_out_channels"),
    "inpainting alone": (lambda f: edited(f / "unet/config.json", in_channels=9), "inpainting or upscaling alone"),
    "told the guidance": (lambda f: edited(f / "unet/config.json", time_cond_proj_dim=256), "told the guidance"),
    "cut": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"\x08" * 40), "vae: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_folders_that_are_no_such_model_are_refused_by_name(folder: Path, case: str) -> None:
    spoil, sentence = WRONG[case]
    spoil(folder)
    with pytest.raises(HeaderError, match=sentence):
        read(folder)


def test_the_largest_image_is_bounded(folder: Path) -> None:
    with pytest.raises(HeaderError, match="image_size: the size 100x64 has a side that is no multiple of 8"):
        read(folder, {"image_size": "100x64"})
    assert read(folder, {"image_size": "64x64"}).size == (64, 64)


def test_the_names_of_schedulers_stand_once() -> None:
    assert set(NamedScheduler.__args__) == set(SCHEDULERS)  # type: ignore[attr-defined]
    assert DrawHeader.backend == "diffusion"


TRANSFORMERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a pickle": ("flux", lambda f: _pickled(f, "transformer"), "transformer: the weights are pickled"),
    "no t5 words": ("flux", lambda f: (f / "tokenizer_2/tokenizer.json").unlink(), "no tokenizer_2/tokenizer.json"),
    "fill": ("flux", lambda f: edited(f / "transformer/config.json", in_channels=384), "for inpainting or upscaling"),
    "patches": ("sd3", lambda f: edited(f / "transformer/config.json", patch_size=99), "patches of 99 latents"),
    "clip for t5": ("sd3", lambda f: edited(f / "model_index.json", text_encoder_3=["transformers", "CLIPTextModel"]),
                    "is CLIPTextModel, and onecard reads prompts with T5's"),
    "another scheduler": ("flux", lambda f: edited(f / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
                          "onecard has FlowMatchEulerDiscreteScheduler, FlowMatchHeun"),
    "no times": ("flux", lambda f: edited(f / "scheduler/scheduler_config.json",
                                          _class_name="FlowMatchHeunDiscreteScheduler"), "hint: .*FlowMatchEuler"),
    "quantised": ("flux", lambda f: edited(f / "transformer/config.json", quantization_config={"load_in_4bit": True}),
                  "transformer is stored quantised"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_so_are_those_with_transformers(families: dict[str, Path], tmp_path: Path, case: str) -> None:
    shape, spoil, sentence = TRANSFORMERS[case]
    folder = shutil.copytree(families[shape], tmp_path / "model")
    spoil(folder)
    with pytest.raises(HeaderError, match=sentence):
        read(folder)


def test_what_a_table_asks_for_and_a_family_lacks_is_refused(families: dict[str, Path]) -> None:
    """Given keys that a family has no place for, then the load's description says so, and the sizes are its own."""
    for shape, options, sentence in (
        ("sd3", {"image_scheduler": "ddim"}, "image_scheduler: ddim is for other models"),
        ("schnell", {"image_guidance": 3.0}, "image_guidance: this model was distilled"),
        ("flux", {"image_size": "72x64"}, "image_size: the size 72x64 has a side that is no multiple of 16"),
        ("sd3", {"image_size": "400x64"}, "has a side outside of 64..384 pixels"),
    ):
        with pytest.raises(HeaderError, match=sentence):
            read(families[shape], options)
    assert (read(families["sd3"]).size, read(families["flux"]).size) == ((128, 128), (1024, 1024))
    header = read(families["flux"], {"image_size": "128x128"})
    assert estimate(header, DrawPlan(parallel=1)).host.weights == 4 * sum(one.n_elements for one in header.tensors)
