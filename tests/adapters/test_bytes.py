"""What adapters of a folder take: the estimate is what is held, however layers are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import demo
from backends.backend import Backend
from backends.bnb import lora
from backends.bnb.loading import load
from backends.registry import BACKENDS
from tests.adapters.passes import options
from tests.adapters.test_merging import adapter_of
from tests.models.lora import build_folder
from tests.specs import plan_of, spec_of
from tests.training.test_shapes import base_of

pytestmark = pytest.mark.engine
RANKS = {"one": (8,), "many": (8, 12, 16, 5), "stacks": (40, 48), "wide": (96, 64)}
"""Adapters of all linear layers. Some are a stack, some two, and 96 columns for each of three layers do not join."""


def held(base: Path, chosen: dict[str, Any]) -> int:
    engine: Any = load(spec_of("demo", "bnb", base, 64, threads=1, options=chosen), lambda _: None)
    parts = engine.ready().parts
    engine.close()
    return int(parts["adapters"])


def estimated(base: Path, chosen: dict[str, Any], **plan: Any) -> int:
    of: Backend = BACKENDS["bnb"]
    told = of.estimate(of.describe(base, chosen), plan_of(64, 1, **plan))
    return (told.device if plan else told.host).by_name["adapters"]


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="oneDNN's blocks are others there")
@pytest.mark.parametrize("quantization", ["none", "bnb-4bit", "bnb-8bit"])
@pytest.mark.parametrize("name", RANKS)
def test_the_estimate_is_what_is_held(name: str, quantization: str, tmp_path: Path) -> None:
    folders = {f"a{n}": build_folder(tmp_path / f"a{n}", n, rank=rank) for n, rank in enumerate(RANKS[name])}
    chosen = {**options(folders), "quantization": quantization}

    assert estimated(demo.HF_PATH, chosen) == held(demo.HF_PATH, chosen)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="oneDNN's blocks are others there")
@pytest.mark.parametrize("name", ["Qwen2", "Phi3", "GPT2"])
def test_so_it_is_of_layers_of_other_shapes(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path / "base")
    targets = ["c_attn", "c_proj"] if name == "GPT2" else "all-linear"
    chosen = options({"a": adapter_of(base, tmp_path / "a", target_modules=targets)})

    assert estimated(base, chosen) == held(base, chosen)


def test_hooks_that_do_not_pack_hold_no_more_than_is_estimated_for_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a quantised base, as a card has it: there is no zero but those of products of several layers."""
    folder = build_folder(tmp_path / "a", 1)
    chosen = {**options({"a": folder}), "quantization": "bnb-4bit"}
    monkeypatch.setattr(lora, "can_pack", lambda _: False)

    found = held(demo.HF_PATH, chosen)

    (known,) = BACKENDS["bnb"].describe(demo.HF_PATH, chosen).adapters
    assert estimated(demo.HF_PATH, chosen, device="cuda") == found
    assert known.n_values * 2 <= found < known.n_values * 2 * 1.6
