"""Models in one file whose numbers have 8 bits: read exactly, scaled or not, into as little memory as they need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.backend import HeaderError
from backends.diffusion.header import read
from backends.diffusion.kind import Draw, DrawPlan
from backends.engine import LoadError
from backends.registry import estimate
from tests.draw.loading import loaded
from tests.draw.test_engine import drawn
from tests.draw.test_single_file import networks

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
from safetensors.torch import load_file, save_file  # noqa: E402 - behind what is skipped

JOB = Draw("a", "a red background", 64, 64, seed=1, steps=2)
SCALE = 0.37


def in_eight(file: Path, to: Path, *, ending: str = "", kind: Any = torch.float8_e4m3fn) -> Path:
    """A file of 8-bit floats; with an `ending` each matrix has a scale beside it, as ComfyUI's have."""
    made: dict[str, Any] = {}
    for name, tensor in load_file(file).items():
        is_scaled = bool(ending) and tensor.dim() == 2 and name.endswith(".weight")
        made[name] = (tensor / SCALE if is_scaled else tensor).to(kind) if tensor.is_floating_point() else tensor
        if is_scaled:
            layer = name.removesuffix("weight")
            made |= {layer + ending: torch.tensor(SCALE), f"{layer}scale_input": torch.tensor([2.0])}
    save_file({**made, **({"scaled_fp8": torch.empty(0, dtype=kind)} if ending else {})}, to)
    shutil.copytree(file.with_suffix(""), to.with_suffix(""), dirs_exist_ok=True)
    return to


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "ending", "kind"),
    [("sd3", "", "float8_e5m2"), ("flux", "scale_weight", "float8_e4m3fn"), ("xl", "weight_scale", "float8_e4m3fn")],
)
def test_its_numbers_are_the_file_s(
    name: str, ending: str, kind: str, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """Given a file in 8 bits, when it is loaded, then each number is the stored one, times its matrix's scale; bytes
    are counted by what is placed, and it draws."""
    dtype = getattr(torch, kind)
    file = in_eight(files[name], tmp_path / "a.safetensors", ending=ending, kind=dtype)
    assert estimate(read(file), DrawPlan(parallel=1)).host == estimate(read(folders[name]), DrawPlan(parallel=1)).host
    ours, theirs = loaded(file), loaded(files[name])
    for one, other in zip(networks(ours), networks(theirs), strict=True):
        wanted = other.state_dict()
        for key, tensor in one.state_dict().items():
            if "text_projection" in key and torch.equal(wanted[key], torch.eye(*wanted[key].shape)):
                continue  # Stable Diffusion 3's, which no file holds
            exact = wanted[key].to(dtype).float()
            scaled = (wanted[key] / SCALE).to(dtype).float() * torch.tensor(SCALE)
            assert torch.equal(tensor, exact) or (ending and torch.equal(tensor, scaled)), key
    assert drawn(ours, JOB)[0].std() > 0


def test_scales_that_are_not_understood_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """Given a scale for each row, one of another kind, two, or whole numbers, then a sentence names the tensor."""
    held = load_file(in_eight(files["flux"], tmp_path / "a.safetensors"))
    layer = "model.diffusion_model.double_blocks.0.img_attn.qkv"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({f"{layer}.scale_weight": torch.ones(96)}, f"{layer}.scale_weight is 96 F32, and onecard reads one float"),
        ({f"{layer}.weight_scale_inv": torch.ones(1)}, f"{layer}.weight_scale_inv scales a matrix in a way"),
        ({f"{layer}.{one}": torch.ones(1) for one in ("scale_weight", "weight_scale")}, "is scaled twice"),
        ({f"{layer}.weight": torch.ones(96, 32, dtype=torch.int8)}, f"{layer}.weight is stored as I8.*in float8"),
    )
    for more, sentence in cases:
        save_file({**held, **more}, tmp_path / "a.safetensors")
        with pytest.raises(HeaderError, match=sentence):
            read(tmp_path / "a.safetensors")


@pytest.mark.engine
def test_a_scale_that_is_no_number_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """Given a scale of nothing, then it is told by name when it is read."""
    layer = "model.diffusion_model.double_blocks.0.img_attn.qkv"
    held = load_file(in_eight(files["flux"], tmp_path / "a.safetensors", ending="scale_weight"))
    save_file({**held, f"{layer}.scale_weight": torch.tensor(float("nan"))}, tmp_path / "a.safetensors")
    with pytest.raises(LoadError, match=f"{layer}.scale_weight is nan, which scales nothing"):
        loaded(tmp_path / "a.safetensors")


@pytest.mark.engine
def test_a_load_takes_one_tensor_more_than_it_keeps(made: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Given a Flux of 9 million numbers in 8 bits, when it is loaded in 4, then host memory never holds the 33 MiB that
    they are in float32, but what stays and a tensor or two."""
    pytest.importorskip("bitsandbytes", reason="the extra `bnb` brings bitsandbytes")
    from tests.draw.families import flux
    from tests.draw.single import flux as written

    folder = flux(made, tmp_path / "wide", wide=True)
    whole = written(folder, tmp_path / "wide.safetensors")
    file = in_eight(whole, tmp_path / "a.safetensors")
    command = [sys.executable, "-m", "tests.draw.load_memory", str(file), str(files["flux"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["weights"] < 12 * 2**20
    assert told["most"] < told["kept"] + 10 * 2**20


@pytest.mark.engine
def test_a_file_that_changes_while_it_is_loaded_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    """Given a file that another one replaces, or that is cut, once the first network is read, then the load says so."""
    from backends.diffusion.loading import load
    from backends.messages import LoadModel

    def replaced(file: Path) -> None:
        shutil.copy(file, f"{file}.2")
        Path(f"{file}.2").replace(file)

    def cut(file: Path) -> None:
        os.truncate(file, 99)

    options: dict[str, Any] = {"image_config": str(files["flux"].with_suffix("")), "image_size": "96x96"}
    for change, sentence in ((replaced, "was changed while it was loaded"), (cut, "was cut while it was read")):
        file = Path(shutil.copy(files["flux"], tmp_path / "a.safetensors"))
        plan = DrawPlan(parallel=1)
        spec = LoadModel(name="a", backend="diffusion", path=str(file), plan=plan, threads=1, options=options)

        def after(_share: float, change: Callable[[Path], None] = change, file: Path = file) -> None:
            change(file)

        with pytest.raises(LoadError, match=sentence):
            load(spec, after)
