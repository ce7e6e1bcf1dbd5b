"""The engine against diffusers' own pipelines: the same image for the same noise, of random weights in both shapes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backends.diffusion.kind import Draw, Picture, Progressed
from backends.engine import JobError, LoadError
from backends.messages import Event, Failed, Finished
from tests.draw.loading import loaded

pytestmark = pytest.mark.engine
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
PROMPT = "a yellow square on a purple background"


@pytest.fixture(scope="module")
def xl(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of Stable Diffusion XL, with the other's tokenizer and autoencoder."""
    from tests.draw.families import xl as built

    return built(made, tmp_path_factory.mktemp("xl") / "model")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def drawn(engine: Any, *jobs: Draw) -> list[np.ndarray]:
    """The images of all jobs, drawn together."""
    for job in jobs:
        engine.add(engine.prepare(job))
    events: list[Event] = []
    while not engine.idle:
        events += engine.step().events
    found = {event.id: pixels(event.data) for event in events if isinstance(event, Picture)}
    return [found[job.id] for job in jobs]


def by_diffusers(pipe: Any, seed: int, **fields: Any) -> np.ndarray:
    import torch

    pipe.set_progress_bar_config(disable=True)
    chance = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(generator=chance, height=64, width=96, **fields).images[0]).astype(int)


@pytest.mark.parametrize("shape", ["sd", "xl"])
def test_images_are_those_of_diffusers_pipelines(shape: str, made: Path, xl: Path) -> None:
    """Given prompts with and without guidance and something unwanted, then no pixel differs by more than rounding."""
    import torch

    folder = made if shape == "sd" else xl
    engine = loaded(folder)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    asked: Sequence[dict[str, Any]] = [
        {"guidance": 4.0},
        {"guidance": 0.0},
        {"guidance": 6.0, "negative_prompt": "red"},
    ]
    jobs = [Draw(str(i), PROMPT, 96, 64, seed=i, steps=4, **fields) for i, fields in enumerate(asked)]
    ours = drawn(engine, *jobs)
    for job, image in zip(jobs, ours, strict=True):
        fields = {"prompt": PROMPT, "guidance_scale": job.guidance, "num_inference_steps": 4}
        theirs = by_diffusers(pipe, job.seed, negative_prompt=job.negative_prompt or None, **fields)
        assert image.shape == theirs.shape == (64, 96, 3)
        assert np.abs(image - theirs).max() <= 1, job


def test_images_join_and_leave_between_steps(xl: Path) -> None:
    """Given an image under way, when others join and one leaves, then each is as it is alone."""
    engine = loaded(xl)
    jobs = [Draw(str(i), PROMPT, 64, 64, seed=i, steps=3 + i) for i in range(3)]
    alone = [drawn(engine, job)[0] for job in jobs]
    engine.add(engine.prepare(jobs[2]))
    events: list[Event] = [*engine.step().events, *engine.add(engine.prepare(jobs[0]))]
    events += [*engine.step().events, *engine.add(engine.prepare(jobs[1])), *engine.cancel("0")]
    n_before = sum(isinstance(event, Progressed) and event.id == "0" for event in events)
    while not engine.idle:
        events += engine.step().events
    found = {event.id: pixels(event.data) for event in events if isinstance(event, Picture)}
    assert set(found) == {"1", "2"}
    assert all((found[str(i)] == alone[i]).all() for i in (1, 2))
    assert sum(isinstance(event, Progressed) and event.id == "0" for event in events) == n_before == 1


def test_rows_of_a_pass_do_not_see_each_other(xl: Path) -> None:
    """Given rows at different times with different prompts, when they share a pass, then each is as alone."""
    import torch

    from backends.diffusion.painter import Row

    painter = loaded(xl)._painter
    told = [painter.condition(painter.read(text, "prompt")) for text in ("red", PROMPT)]
    latents = [painter.first_latents(8, 8, torch.Generator().manual_seed(i)) for i in range(4)]
    rows = [Row(one, torch.tensor(100.0 * i), told[i % 2]) for i, one in enumerate(latents)]
    together = painter.noise(rows, (64, 64))
    for row, found in zip(rows, together, strict=True):
        assert torch.allclose(found, painter.noise([row], (64, 64))[0], atol=1e-4)


def test_an_image_that_ends_before_memory_runs_out_is_not_lost(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given two images of one size, when the second finds no memory in the first one's last step, then both end."""
    engine = loaded(made)
    for name, steps in (("first", 1), ("second", 4)):
        engine.add(engine.prepare(Draw(name, PROMPT, 64, 64, seed=0, steps=steps, guidance=0.0)))
    noise, calls = engine._painter.noise, iter(range(9))

    def short(rows: Any, size: tuple[int, int]) -> Any:
        if next(calls) == 1:
            raise MemoryError
        return noise(rows, size)

    monkeypatch.setattr(engine._painter, "noise", short)
    events = engine.step().events
    assert [event.id for event in events if isinstance(event, Finished)] == ["first"]
    assert [(event.id, event.code) for event in events if isinstance(event, Failed)] == [("second", "out_of_memory")]
    assert engine.idle


def test_a_folder_may_mix_halves_with_plain_files(made: Path, tmp_path: Path) -> None:
    """Given a U-Net of which only the file that says fp16 was fetched, then it draws what the plain folder draws."""
    mixed = shutil.copytree(made, tmp_path / "mixed")
    plain = mixed / "unet/diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    job = Draw("a", PROMPT, 64, 64, seed=1, steps=2)
    assert (drawn(loaded(mixed), job)[0] == drawn(loaded(made), job)[0]).all()


def test_what_does_not_load_says_why(xl: Path, tmp_path: Path) -> None:
    """Given weights of another shape, and a vocabulary without words, then the load fails with a sentence."""
    broken = shutil.copytree(xl, tmp_path / "a")
    config = json.loads((broken / "unet/config.json").read_text())
    (broken / "unet/config.json").write_text(json.dumps({**config, "cross_attention_dim": 40}))
    with pytest.raises(LoadError, match="unet cannot be loaded"):
        loaded(broken)
    empty = shutil.copytree(xl, tmp_path / "b")
    for file in (empty / "tokenizer").iterdir():
        file.unlink()
    (empty / "tokenizer/vocab.json").write_text("{}")
    with pytest.raises(LoadError, match="tokenizer"):
        loaded(empty)
    with pytest.raises(JobError, match="has no 120 steps"):
        loaded(xl).prepare(Draw("a", PROMPT, 64, 64, seed=0, steps=120, scheduler="lcm"))


def test_a_scheduler_that_cannot_compute_is_refused_by_name(xl: Path, tmp_path: Path) -> None:
    """Given a folder whose scheduler's configuration some schedulers take and fail with in their first step, then each
    is found while the model loads: requests for it are refused, the others draw, and it is no default."""
    folder = shutil.copytree(xl, tmp_path / "odd")
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "variance_type": "learned"}))
    engine = loaded(folder)
    with pytest.raises(JobError, match=r"ddpm cannot compute with this folder's scheduler_config\.json: .+ hint"):
        engine.prepare(Draw("a", PROMPT, 64, 64, seed=0, steps=2, scheduler="ddpm"))
    assert len(drawn(engine, Draw("a", PROMPT, 64, 64, seed=0, steps=2, scheduler="ddim"))) == 1
    with pytest.raises(LoadError, match="the scheduler ddpm cannot compute"):
        loaded(folder, options={"image_scheduler": "ddpm"})
