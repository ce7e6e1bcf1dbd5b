"""One server for all tests: random weights, the toy, a model of text; the budget holds one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.conftest import Server

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of the toy's shapes that has learnt nothing."""
    pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
    from demo.draw.train import Recipe, new_pipeline, save

    folder = tmp_path_factory.mktemp("drawn") / "model"
    save(new_pipeline(Recipe()), folder)
    return folder


@pytest.fixture(scope="session")
def families(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stable Diffusion 3 and Flux in tiny shapes; without T5, and as it was distilled to need no guidance."""
    from tests.draw.families import flux, sd3

    folder = tmp_path_factory.mktemp("families")
    return {
        "sd3": sd3(made, folder / "sd3"),
        "sd3 without t5": sd3(made, folder / "bare", with_t5=False),
        "flux": flux(made, folder / "flux"),
        "schnell": flux(made, folder / "schnell", is_schnell=True),
    }


@pytest.fixture(scope="session")
def folders(made: Path, families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each shape; their text encoders are told apart by their widths."""
    from tests.draw.families import sd3, xl

    place = tmp_path_factory.mktemp("folders")
    third = sd3(made, place / "sd3", as_published=True)
    return {"sd": made, "xl": xl(made, place / "xl", widths=(32, 40)), "sd3": third, "flux": families["flux"]}


@pytest.fixture(scope="session")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in one file each, with a folder of its name that has all but weights."""
    from tests.draw.single import WRITERS

    place = tmp_path_factory.mktemp("single")
    found = {}
    for name, folder in folders.items():
        shutil.copytree(folder, place / name, ignore=shutil.ignore_patterns("*.safetensors"))
        found[name] = WRITERS[name](folder, place / f"{name}.safetensors")
    return found


@pytest.fixture(scope="package")
def server(made: Path, families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """See above."""
    from tests.draw.lora import random_pairs, red_is_blue

    folder = tmp_path_factory.mktemp("draw")
    blue = red_is_blue(folder / "blue.safetensors")
    random_pairs(folder / "wrong.safetensors", {f"unet.{Q}": (40, 32)})
    settings = {
        "models": {
            "artist": {"path": str(made), "image_steps": 8, "image_guidance": 3.0, "image_size": "128x128"},
            "other": {"path": str(made), "image_steps": 4, "parallel": 1},
            "toy": {"path": "demo-draw", "adapters": {"blue": str(blue), "wrong": str(folder / "wrong.safetensors")}},
            "three": {"path": str(families["sd3"]), "image_steps": 4, "parallel": 2},
            "flux": {"path": str(families["flux"]), "image_steps": 4, "image_size": "128x128", "parallel": 2},
            "packed": {"path": str(families["flux"]), "image_steps": 2, "parallel": 1, "quantization": "bnb-4bit"},
            "chat": {"path": "demo", "context": 4096, "parallel": 32},  # 128 MiB of KV cache
        },
        "server": {"drain_s": 1, "sse_keepalive_s": 1},
        "memory": {"device": "cpu", "budget": "700MiB", "prefix_cache": "32MiB"},
        "scheduler": {"min_residency_s": 0},
    }
    running = Server(settings, folder / "server.log", ONECARD_TEST_ENGINE="", XDG_CACHE_HOME=str(folder / "cache"))
    yield running
    assert running.stop() == 0, running.log
