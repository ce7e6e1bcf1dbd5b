"""Memory that is spared while images are drawn: the same images, the bytes that are predicted, which plan is taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from backends.diffusion import arithmetic
from backends.diffusion.header import DrawHeader
from backends.diffusion.kind import Draw, DrawPlan, Offloaded
from backends.plan import Amount, Footprint, Wish
from backends.registry import BACKENDS
from server.memory.placement import place
from server.scheduling.budget import Refused
from tests.draw.loading import loaded
from tests.draw.test_bytes import most_alive
from tests.draw.test_engine import drawn

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
GIB = 2**30
JOBS = [Draw(str(i), "a red background", 64, 64, seed=i, steps=3, guidance=3.0) for i in range(2)]


def described(folder: Path, **options: Any) -> DrawHeader:
    header = BACKENDS["diffusion"].describe(folder, options)
    assert isinstance(header, DrawHeader)
    return header


@pytest.mark.parametrize("offload", ["text", "parts", "all"])
def test_networks_that_wait_draw_the_same_bytes(
    offload: Offloaded, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given networks that come for their passes, when images are drawn, then no byte differs, all numbers are back in
    their place, and what lived beside them is what is predicted."""
    sparing, found = loaded(made, DrawPlan(parallel=2, offload=offload)), list[np.ndarray]()
    stored = torch.nn.ModuleDict(networks(sparing))
    alive = most_alive(lambda: found.extend(drawn(sparing, *JOBS)), stored)
    whole = drawn(loaded(made, DrawPlan(parallel=2)), *JOBS)
    assert all((ours == theirs).all() for ours, theirs in zip(found, whole, strict=True))
    monkeypatch.setattr(arithmetic, "LAYOUT_BYTES", {"cpu": 0})  # oneDNN's own, which is in no tensor
    header, plan = described(made), DrawPlan(parallel=2, offload=offload)
    predicted = arithmetic.compute_bytes(header, plan, arithmetic.rows_at_once(plan), (64, 64))
    bare = arithmetic.compute_bytes(header, DrawPlan(parallel=2), 2, (64, 64))
    assert 4 * alive < predicted * 1.08 + 64 * 64 * 4 * 20
    if offload == "all":
        assert 4 * alive > bare
    held = list(stored.parameters())
    assert len({tensor.data_ptr() for tensor in held}) == len(held)


def networks(engine: Any) -> dict[str, Any]:
    painter = engine._painter
    return {"vae": painter._vae, "unet": painter._denoiser, "text_encoder": painter._encoders[0].network}


def test_slices_draw_the_same_within_rounding(made: Path) -> None:
    plain, sliced = (drawn(loaded(made, DrawPlan(parallel=2, sliced=one)), *JOBS) for one in (False, True))
    assert max(np.abs(a - b).max() for a, b in zip(plain, sliced, strict=True)) <= 1


@pytest.fixture(scope="module")
def large(made: Path) -> DrawHeader:
    """Stable Diffusion 1.5's shapes: 860 M numbers in the U-Net, 123 M in the text encoder, 84 M in the autoencoder."""
    header, sizes = described(made, image_size="768x768"), {"unet": 860, "text_encoder": 123, "vae": 84}
    first = {tensor.name.partition(".")[0]: tensor for tensor in header.tensors}
    tensors = tuple(
        dataclasses.replace(first[part], name=f"{part}.a.weight", shape=(millions * 100, 10_000))
        for part, millions in sizes.items()
    )
    denoiser = {**header.denoiser, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
    denoiser["down_block_types"] = [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
    return dataclasses.replace(
        header,
        tensors=tensors,
        denoiser=denoiser,
        vae={**header.vae, "block_out_channels": [128, 256, 512, 512], "force_upcast": False},
    )


WISH = Wish(context=None, parallel=4, kv_type="f16", gpu_layers=None, device="cuda", open=frozenset({"parallel"}))


def placed(header: DrawHeader, card_gib: float, wish: Wish = WISH) -> DrawPlan:
    free = Amount(int(card_gib * GIB), 64 * GIB)
    found = place("m", header, wish, budget=free, free=free)
    assert not isinstance(found, Refused), found
    assert isinstance(found.plan, DrawPlan)
    return found.plan


def test_the_less_room_the_more_is_spared(large: DrawHeader) -> None:
    """Given ever less of a card, then slices come first, then text encoders and the autoencoder wait, then fewer images
    are drawn at once, then all networks take turns, and tiles come last."""
    plans = list(BACKENDS["diffusion"].plans(large, WISH))
    assert all(plan.words.endswith(", float16") for plan in plans)
    words = [plan.words.removesuffix(", float16") for plan in plans]
    assert words[:5] == [
        "parallel 4",
        "parallel 4, feed-forward in slices",
        "parallel 4, feed-forward in slices, text encoders in host memory",
        "parallel 4, feed-forward in slices, text encoders and autoencoder in host memory",
        "parallel 2",
    ]
    assert words[-1] == "parallel 1, feed-forward in slices, all networks in host memory, decoded in tiles"
    bytes_of = [BACKENDS["diffusion"].estimate(large, plan) for plan in plans]
    least = min(one.device.total_bytes for one in bytes_of) / GIB
    assert placed(large, bytes_of[0].device.total_bytes / GIB + 0.01) == plans[0]
    assert placed(large, least + 0.001).offload == "all"
    for plan, footprint in zip(plans, bytes_of, strict=True):
        waits = sum(arithmetic.weight_bytes(large, plan)[part] for part in arithmetic.waiting_parts(large, plan))
        assert footprint.host.weights == waits
        assert footprint.device.weights + waits == 2 * 10**6 * (860 + 123 + 84)
        if plan.offload == "all":
            assert footprint.device.weights == 0
            assert footprint.device.compute > 2 * 860 * 10**6


def test_what_the_operator_says_is_done(large: DrawHeader, made: Path) -> None:
    """Given keys of the model's table, then only such plans are made; on a processor nothing waits anywhere."""
    header = dataclasses.replace(large, ways=described(made, image_offload="parts", image_sliced=False).ways)
    plans = list(BACKENDS["diffusion"].plans(header, WISH))
    assert {(plan.offload, plan.sliced) for plan in plans} == {("parts", False)}
    tiled = dataclasses.replace(large, ways=described(made, image_tiled=True).ways)
    assert all(plan.tiled for plan in BACKENDS["diffusion"].plans(tiled, WISH))
    on_cpu = list(BACKENDS["diffusion"].plans(header, dataclasses.replace(WISH, device="cpu")))
    assert {plan.offload for plan in on_cpu} == {"none"}
    assert [len(found) for found in (plans, on_cpu)] == [len(set(plans)), len(set(on_cpu))]
    assert BACKENDS["diffusion"].choices.figures(header, plans[0])["image_offload"] == "parts"
    whole = replace(plans[0], offload="none")
    room = Amount(64 * GIB, 64 * GIB)
    others = BACKENDS["diffusion"].choices.others(large, whole, room, lambda _plan: Footprint(), fits=False)
    assert {plan.offload for plan in others} == {"none", "text", "parts", "all"}
