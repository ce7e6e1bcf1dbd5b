"""Adapters of a model that draws: over HTTP by a colour, against peft in the networks, and the base bit for bit."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest
import tomlkit
from msgspec.structs import replace

from backends.diffusion.kind import DrawPlan
from backends.registry import BACKENDS
from tests.draw.conftest import Q
from tests.draw.loading import loaded
from tests.draw.test_demo_draw import background
from tests.e2e.server import serving, until
from tests.http.conftest import Server

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.draw.lora import random_pairs, red_is_blue  # noqa: E402 - behind what is skipped

pytestmark = pytest.mark.engine
RED = "a red background"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def draw(client: openai.OpenAI, model: str, **fields: Any) -> bytes:
    made: Any = client.images.generate(model=model, prompt=RED, size="64x64", extra_body={"seed": 3, **fields})
    return base64.b64decode(made.data[0].b64_json)


def test_an_adapter_draws_another_colour(client: openai.OpenAI) -> None:
    """Given an adapter that was made to draw blue for red, when it is named, then the background is blue."""
    listed = {model.id: model for model in client.models.list()}
    assert cast("Any", listed["toy:blue"]).parent == "toy"
    assert [background(draw(client, name)) for name in ("toy", "toy:blue", "toy")] == ["red", "blue", "red"]
    image = ("red.png", draw(client, "toy"))
    changed: Any = client.images.edit(model="toy:blue", image=image, prompt=RED, extra_body={"seed": 3, "strength": 1})
    assert background(base64.b64decode(changed.data[0].b64_json)) == "blue"


def test_images_of_the_base_are_the_same_beside_adapters(client: openai.OpenAI) -> None:
    """Given images of the base and of an adapter in several strengths, when drawn at once, then each is as alone."""
    asked: list[dict[str, Any]] = [
        {"model": "toy"},
        {"model": "toy:blue"},
        {"model": "toy:blue", "adapter_scale": 0.5},
        {"model": "toy:blue", "adapter_scale": 0},
    ]
    alone = [draw(client, **fields) for fields in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda fields: draw(client, **fields), asked))
    assert together == alone
    assert alone[0] == alone[3]
    assert len({*alone}) == 3
    assert draw(client, "toy:blue", adapter_scale=1.0) == alone[1]


def test_what_cannot_be_is_refused(server: Server) -> None:
    def refused(**fields: Any) -> tuple[int, str | None, str]:
        answer = server.post("/v1/images/generations", {"prompt": RED, **fields}, timeout=300)
        return answer.status, answer.error["param"], answer.error["message"]

    assert refused(model="toy", adapter_scale=1)[:2] == (400, "adapter_scale")
    assert refused(model="toy:blue", adapter_scale=4.5)[:2] == (400, "adapter_scale")
    assert refused(model="toy:green")[0] == 404
    status, param, told = refused(model="toy:wrong")
    assert (status, param) == (503, "model")
    assert f"its matrices for unet.{Q} are 4 x 32 and 40 x 4, and this model has 32 x 32 there" in told


def test_it_is_told(client: openai.OpenAI, server: Server, tmp_path: Path) -> None:
    draw(client, "toy:blue")
    model = server.model("toy")
    assert model["facts"]["adapters"] == "blue"
    stored = load_file(red_is_blue(tmp_path / "blue.safetensors"))
    assert model["parts"]["adapters"] == sum(4 * matrix.numel() for matrix in stored.values())


def test_it_comes_and_goes_while_the_server_runs(tmp_path: Path) -> None:
    """Given a server that draws, when an adapter is written into its configuration and taken out again, then its name
    is there and gone, images that were under way are drawn to their end, and one that waited for it is told."""
    file, blue = tmp_path / "onecard.toml", red_is_blue(tmp_path / "blue.safetensors")

    def configured(**adapters: str) -> dict[str, Any]:
        models = {"toy": {"path": "demo-draw", "parallel": 1, "adapters": adapters}}
        file.write_text(tomlkit.dumps({"memory": {"device": "cpu"}, "models": models}))
        return models

    configured()
    with serving(tmp_path, models={}, flags=("--config", str(file))) as running, ThreadPoolExecutor(2) as pool:
        client, kind = running.client(timeout=300), cast("Any", object)

        def toy() -> dict[str, Any]:
            return running.get("/v1/status")["models"][0]

        under_way = pool.submit(draw, client, "toy", steps=60)
        until(lambda: toy()["busy"] == 1, 60)
        configured(blue=str(blue))
        client.post("/config/reload", body={}, cast_to=kind)
        assert background(under_way.result()) == "red"
        assert background(draw(client, "toy:blue")) == "blue"
        under_way = pool.submit(draw, client, "toy", steps=150)
        until(lambda: toy()["busy"] == 1, 60)
        waits = pool.submit(draw, client, "toy:blue")
        until(lambda: toy()["waiting"] == 1, 60)
        configured()
        client.post("/config/reload", body={}, cast_to=kind)
        assert background(under_way.result()) == "red"
        with pytest.raises(openai.NotFoundError, match="the adapter 'blue' is no longer configured"):
            waits.result()
        with pytest.raises(openai.NotFoundError):
            draw(client, "toy:blue")
        assert background(draw(client, "toy")) == "red"


def test_a_row_is_what_peft_computes(made: Path, tmp_path: Path) -> None:
    """Given an adapter of attention, feed-forward and convolutions, of a text encoder too, saved by diffusers with the
    scales of peft, then noise and prompts differ from peft's by at most 1e-5, and the base's by nothing."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    from backends.diffusion.painter import Row

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(made, torch_dtype=torch.float32, safety_checker=None)
    torch.manual_seed(1)
    layers = ["to_q", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.2", "conv_shortcut", "conv"]
    configs = {
        "unet": LoraConfig(r=4, lora_alpha=8, target_modules=layers, init_lora_weights=False, use_rslora=True),
        "text_encoder": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"], init_lora_weights=False),
    }
    for part, config in configs.items():
        inject_adapter_in_model(config, getattr(pipe, part))
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        *(get_peft_model_state_dict(getattr(pipe, part)) for part in configs),
        **{f"{part}_lora_adapter_metadata": config.to_dict() for part, config in configs.items()},
    )
    engine, bare = loaded(made, style=tmp_path), loaded(made)
    assert engine.ready().facts.adapters == {"style": ""}
    painter, ids = engine._painter, engine._painter.read(RED, "prompt")
    told = painter.condition(ids, adapter="style")
    with torch.inference_mode():
        theirs = pipe.text_encoder(torch.tensor(ids))[0]
        assert (
            float((told.context - theirs).abs().max())
            < 1e-5
            < float((told.context - bare._painter.condition(ids).context).abs().max())
        )
        latents, time = torch.randn(1, 4, 8, 8), torch.tensor(300)
        wanted = pipe.unet(latents, time, theirs).sample
    row = Row(latents, time, told, adapter="style")
    assert float((painter.noise([row], (64, 64))[0] - wanted).abs().max()) < 1e-5
    for one in (painter, bare._painter):
        assert torch.equal(
            one.noise([Row(latents, time, told)], (64, 64))[0],
            bare._painter.noise([Row(latents, time, told)], (64, 64))[0],
        )
    rows = [Row(latents, time, told, adapter="style", adapter_scale=scale) for scale in (1.0, -0.5, 0.0)]
    together = painter.noise(rows, (64, 64))
    for each, found in zip(rows, together, strict=True):
        assert torch.allclose(found, painter.noise([each], (64, 64))[0], atol=1e-5)


def test_one_that_computes_no_numbers_is_refused_and_the_others_are_served(made: Path, tmp_path: Path) -> None:
    good = random_pairs(tmp_path / "good.safetensors", {f"unet.{Q}": (32, 32)})
    large = {name: tensor * 1e30 for name, tensor in load_file(good).items()}
    save_file(large, tmp_path / "large.safetensors")
    save_file({**large, next(iter(large)): torch.full((4, 32), float("inf"))}, tmp_path / "inf.safetensors")
    engine = loaded(made, good=good, large=tmp_path / "large.safetensors", inf=tmp_path / "inf.safetensors")
    told = engine.ready().facts.adapters
    assert (told["good"], "no numbers" in told["large"], "numbers that are none" in told["inf"]) == ("", True, True)
    assert engine.ready().parts["adapters"] == 4 * 4 * 64
    header = BACKENDS["diffusion"].describe(made, {"adapters": json.dumps({"good": str(good)})})
    plan = DrawPlan(parallel=1)
    assert BACKENDS["diffusion"].estimate(header, plan).host.further == {"adapters": 4 * 4 * 64}
    assert BACKENDS["diffusion"].estimate(header, replace(plan, device="cuda")).device.further == {
        "adapters": 2 * 4 * 64
    }


def test_passes_have_one_adapter_each() -> None:
    """Given images of the base and of two adapters, then a card computes them in three passes, a processor in four."""
    from backends.diffusion.engine import passes_of

    drawn = [cast("Any", SimpleNamespace(job=SimpleNamespace(adapter=name))) for name in ("", "", "a", "b")]
    assert passes_of(drawn, together=True) == [drawn[:2], drawn[2:3], drawn[3:]]
    assert passes_of(drawn, together=False) == [[one] for one in drawn]
