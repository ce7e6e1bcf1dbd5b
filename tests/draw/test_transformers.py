"""Stable Diffusion 3 and Flux in tiny shapes of random weights: images, prompts, refusals, against diffusers' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from backends.diffusion.kind import Draw
from backends.diffusion.route import SURFACE
from backends.engine import JobError
from backends.messages import Event
from tests.draw.families import LONG, PROMPT
from tests.draw.loading import loaded
from tests.draw.test_edits import HOLE, PLAIN, png, shown
from tests.draw.test_engine import by_diffusers, drawn
from tests.http.conftest import Server

pytestmark = pytest.mark.engine
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
SHAPES = ("sd3", "sd3 without t5", "flux", "schnell")


@pytest.fixture(scope="module")
def engines(families: dict[str, Path]) -> dict[str, Any]:
    """Each loaded once."""
    return {name: loaded(folder) for name, folder in families.items()}


ASKED: dict[str, list[dict[str, Any]]] = {
    "sd3": [{"guidance": 4.0}, {"guidance": 0.0}, {"guidance": 6.0, "negative_prompt": "red"}],
    "sd3 without t5": [{"guidance": 5.0}],
    "flux": [{"guidance": 3.5}, {"guidance": 0.0}],
    "schnell": [{}],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_images_are_those_of_diffusers_pipelines(
    shape: str, families: dict[str, Path], engines: dict[str, Any]
) -> None:
    """Given prompts, also ones that CLIP cannot read, then no pixel differs by more than rounding."""
    import torch

    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if shape == "sd3 without t5" else {}
    pipe = diffusers.DiffusionPipeline.from_pretrained(families[shape], dtype=torch.float32, **absent)
    second = {"sd3": "prompt_3", "flux": "prompt_2", "schnell": "prompt_2"}.get(shape)
    for seed, fields in enumerate(ASKED[shape]):
        steps = {"num_inference_steps": 4, "guidance_scale": fields.get("guidance", 0.0)}
        steps |= {"max_sequence_length": 256} if shape == "schnell" else {}
        unwanted = {"negative_prompt": fields["negative_prompt"]} if "negative_prompt" in fields else {}
        ours = drawn(engines[shape], Draw("a", PROMPT, 96, 64, seed=seed, steps=4, **fields))[0]
        theirs = by_diffusers(pipe, seed, prompt=PROMPT, **steps, **unwanted)
        assert ours.shape == theirs.shape == (64, 96, 3)
        assert np.abs(ours - theirs).max() <= 1, fields
        if second is not None:
            long = Draw("a", LONG, 96, 64, seed=seed, steps=4, short_prompt=PROMPT, **fields)
            told = {"prompt": PROMPT, "prompt_2": PROMPT, second: LONG}
            theirs = by_diffusers(pipe, seed, **told, **steps, **unwanted)
            changed = drawn(engines[shape], long)[0]
            assert np.abs(changed - theirs).max() <= 1
            assert (changed != ours).any()


def test_rows_of_a_pass_do_not_see_each_other(engines: dict[str, Any]) -> None:
    """Given rows at different times with different prompts and guidance, when they share a pass, then each is as
    alone; and images that join and leave are the same to the last bit."""
    import torch

    from backends.diffusion.painter import Row

    for name in ("sd3", "flux"):
        painter = engines[name]._painter
        told = [painter.condition(painter.read(text, "prompt")) for text in ("red", PROMPT)]
        latents = [painter.first_latents(8, 12, torch.Generator().manual_seed(i)) for i in range(3)]
        rows = [Row(one, torch.tensor(300.0 * i), told[i % 2], 2.0 * i) for i, one in enumerate(latents)]
        for row, found in zip(rows, painter.noise(rows, (64, 96)), strict=True):
            assert torch.allclose(found, painter.noise([row], (64, 96))[0], atol=1e-4)
        jobs = [Draw(str(i), PROMPT, 64, 64, seed=i, steps=2 + i) for i in range(3)]
        alone = [drawn(engines[name], job)[0] for job in jobs]
        assert all((a == b).all() for a, b in zip(drawn(engines[name], *jobs), alone, strict=True))


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("flux", {"negative_prompt": "red"}, "negative_prompt", "has no effect on this model"),
    ("schnell", {"guidance": 3.0}, "guidance_scale", "was distilled to need no guidance"),
    ("sd3", {"scheduler": "ddim"}, "scheduler", "ddim is for other models; .* hint: euler or heun"),
    ("flux", {"scheduler": "heun"}, "scheduler", "hint: euler, or leave"),
    ("sd3", {"width": 72}, "size", "72x64 has a side that is no multiple of 16. hint: 64x64"),
    ("flux", {"width": 72}, "size", "no multiple of 16"),
    ("sd3", {"width": 400}, "size", r"outside of 64\.\.384"),
    ("flux", {"prompt": LONG}, "prompt", "has 36 tokens, .* reads 30. .* a short_prompt, and T5 reads up to 511"),
    ("schnell", {"prompt": "red " * 300, "short_prompt": "red"}, "prompt", "300 tokens, .* encoder reads 255"),
    ("sd3 without t5", {"short_prompt": "red"}, "short_prompt", "reads the prompt itself"),
    ("sd3 without t5", {"prompt": LONG}, "prompt", "has 36 tokens, and this model's text encoder reads 30"),
    ("sd3", {"prompt": "red", "short_prompt": LONG}, "short_prompt", "has 36 tokens"),
]


@pytest.mark.parametrize(("shape", "fields", "param", "sentence"), REFUSED)
def test_what_a_family_cannot_do_is_refused_by_name(
    engines: dict[str, Any], shape: str, fields: dict[str, Any], param: str, sentence: str
) -> None:
    asked = {"id": "a", "prompt": "red", "width": 64, "height": 64, "seed": 0, "steps": 2, **fields}
    with pytest.raises(JobError, match=sentence) as told:
        engines[shape].prepare(Draw(**asked))
    assert told.value.param == param


def test_other_schedulers_and_what_a_folder_is_made_for(engines: dict[str, Any]) -> None:
    """Given SD3, when heun denoises, then the image is another one; schnell takes four steps of itself."""
    euler, heun = (drawn(engines["sd3"], Draw("a", PROMPT, 64, 64, seed=1, steps=4, scheduler=one))[0]
                   for one in ("euler", "heun"))  # fmt: skip
    assert (euler != heun).any()
    own = {name: (engine._defaults.steps, engine._defaults.guidance) for name, engine in engines.items()}
    assert own == {"sd3": (25, 7.0), "sd3 without t5": (25, 7.0), "flux": (25, 3.5), "schnell": (4, 0.0)}


@pytest.mark.parametrize("model", ["three", "flux"])
def test_over_http(server: Server, model: str, tmp_path: Path) -> None:
    """Given one of each over HTTP, then a seed is its bytes, previews come, edits keep what a mask does not open, and
    `onecard draw` takes a prompt that only T5 reads where it is told what CLIP reads."""
    asked = {"model": model, "prompt": PROMPT, "size": "128x64", "seed": 5}
    answers = [server.post(SURFACE.path, fields, timeout=300) for fields in (asked, asked, {**asked, "seed": 6})]
    first, again, other = (answer.json()["data"][0]["b64_json"] for answer in answers)
    assert first == again != other
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        stream: Any = client.images.generate(
            model=model, prompt=PROMPT, size="128x64", stream=True, partial_images=2, extra_body={"seed": 5}
        )
        events = list(stream)
        assert [event.type.rsplit(".", 1)[1] for event in events] == [*["partial_image"] * 2, "completed"]
        assert events[-1].b64_json == first
        edited: Any = client.images.edit(
            model=model, image=png(HOLE), prompt=PROMPT, extra_body={"seed": 1, "strength": 1}
        )
        made, open_pixels = shown(edited.data[0].b64_json), HOLE[..., 3] == 0
        assert np.array_equal(made[~open_pixels], PLAIN[~open_pixels])
        assert (made[open_pixels] != PLAIN[open_pixels]).any(axis=-1).mean() > 0.5
        varied: Any = client.images.create_variation(model=model, image=png(PLAIN))
        assert shown(varied.data[0].b64_json).shape == PLAIN.shape
    command = [sys.executable, "-m", "server.cli", "draw", model, LONG, "--url", server.url, "-o", f"{tmp_path}/a.png"]
    long = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (long.returncode, "short_prompt" in long.stderr) == (2, True), long.stderr
    short = subprocess.run([*command, "--short-prompt", PROMPT], capture_output=True, text=True, check=False)
    assert short.returncode == 0, short.stderr
    refused = server.post(SURFACE.path, {**asked, "size": "72x64"}, timeout=300)
    assert (refused.status, refused.json()["error"]["param"]) == (400, "size")
    assert "no multiple of 16" in refused.json()["error"]["message"]


def test_a_client_that_leaves_ends_its_image(engines: dict[str, Any]) -> None:
    """Given images under way, when one is cancelled between two steps, then no step of it comes any more."""
    for name in ("sd3", "flux"):
        engine = engines[name]
        for job in (Draw("a", PROMPT, 64, 64, seed=1, steps=6), Draw("b", PROMPT, 64, 64, seed=2, steps=2)):
            engine.add(engine.prepare(job))
        engine.step()
        engine.cancel("a")
        events: list[Event] = []
        while not engine.idle:
            events += engine.step().events
        assert {event.id for event in events} == {"b"}
