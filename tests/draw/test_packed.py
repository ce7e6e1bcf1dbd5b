"""Models that draw with their linear layers in 8 and 4 bits: exact bytes, and images that are the model's still."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.diffusion import arithmetic
from backends.diffusion.kind import Draw, DrawPlan, Quantization
from backends.messages import LoadModel
from backends.plan import Amount, Footprint, Wish
from backends.registry import BACKENDS, estimate
from demo.draw import PATH
from demo.draw.pictures import COLOURS
from tests.draw import lora
from tests.draw.test_engine import drawn
from tests.http.conftest import Server

pytestmark = pytest.mark.engine
pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
pytest.importorskip("bitsandbytes", reason="the extra `bnb` brings bitsandbytes")
BOTH: tuple[Quantization, ...] = ("bnb-8bit", "bnb-4bit")
_POSITIONS = 32 * 8
"""Bytes of the places of CLIP's tokens, which no file stores."""
WISH = Wish(context=None, parallel=1, kv_type="f16", gpu_layers=None, device="cuda", open=frozenset())


def packed(folder: Path, quantization: Quantization, **adapters: Path) -> tuple[Any, int]:
    """An engine, and the bytes that its weights were said to take."""
    from backends.diffusion.loading import load

    named = json.dumps({name: str(path) for name, path in adapters.items()})
    options = {"image_size": "64x64", "quantization": quantization, "image_steps": 8, "image_guidance": 3.0}
    options |= {"adapters": named} if adapters else {}
    header = BACKENDS["diffusion"].describe(folder, options)
    plan = next(iter(BACKENDS["diffusion"].plans(header, dataclasses.replace(WISH, device="cpu"))))
    assert isinstance(plan, DrawPlan)
    assert plan.quantization == quantization
    spec = LoadModel(name="a", backend="diffusion", path=str(folder), plan=plan, threads=1, options=options)
    return load(spec, lambda _share: None), estimate(header, plan).host.weights


def colour(engine: Any, prompt: str, adapter: str = "") -> str:
    """The one of the toy's that an image's mean is nearest to."""
    image = drawn(engine, Draw("a", prompt, 64, 64, seed=1, adapter=adapter))[0]
    far = {name: float(np.abs(image.mean(axis=(0, 1)) - np.array(rgb)).max()) for name, rgb in COLOURS.items()}
    return min(far, key=far.__getitem__)


@pytest.mark.parametrize("quantization", BOTH)
def test_the_toy_draws_its_colours(quantization: Quantization, tmp_path: Path) -> None:
    """Given the toy with a packed U-Net, then its weights take what is predicted, its backgrounds are right, and an
    adapter of its packed layers draws as it was taught."""
    engine, predicted = packed(PATH, quantization, blue=lora.red_is_blue(tmp_path / "blue.safetensors"))
    ready = engine.ready()
    assert ready.parts["weights"] - predicted == _POSITIONS
    assert ready.facts.adapters == {"blue": ""}
    assert [colour(engine, f"a {name} background") for name in ("red", "yellow")] == ["red", "yellow"]
    assert colour(engine, "a red background", "blue") == "blue"


@pytest.mark.parametrize(("shape", "quantization"), [("sd3", "bnb-4bit"), ("flux", "bnb-4bit"), ("flux", "bnb-8bit")])
def test_so_are_transformers_and_t5(families: dict[str, Path], shape: str, quantization: Quantization) -> None:
    """Given a packed transformer and T5, then weights are as predicted; an image is the same twice, near the whole
    model's, and not that."""
    engine, predicted = packed(families[shape], quantization)
    whole, unpacked = packed(families[shape], "none")
    others = whole.ready().parts["weights"] - unpacked  # positions of CLIP, which no file stores
    assert engine.ready().parts["weights"] - others == predicted < unpacked
    job = Draw("a", "a red circle", 64, 64, seed=1, steps=2)
    ours, again, theirs = drawn(engine, job)[0], drawn(engine, job)[0], drawn(whole, job)[0]
    assert (ours == again).all()
    assert 0 < np.abs(ours - theirs).mean() < 20


@pytest.mark.parametrize("quantization", BOTH)
def test_packed_networks_wait_and_come(quantization: Quantization) -> None:
    """Given layers packed for a card, when they wait elsewhere, then a pass computes the same with copies of all their
    numbers, each copied once, and afterwards every tensor has its own again."""
    import torch

    from backends.diffusion.offload import Offload
    from backends.diffusion.packing import pack
    from backends.pytorch.measure import weight_bytes

    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32)).bfloat16().eval()
    network.requires_grad_(requires_grad=False)
    x = torch.randn(5, 64).bfloat16()
    whole = network(x)
    pack(network, quantization, "cpu", "cuda")
    wanted, stored = network(x), weight_bytes(network)
    Offload({"net": network}, ["net"], "another", "cpu")
    places, seen = places_of(network), []
    network[1].register_forward_hook(lambda *_: seen.append((places_of(network), weight_bytes(network))))
    assert torch.equal(network(x), wanted)
    assert 0 < float((wanted - whole).abs().mean()) < 0.05
    ((came, n_bytes),) = seen
    assert n_bytes == stored
    assert not came & places
    assert places_of(network) == places


def places_of(network: Any) -> set[int]:
    from backends.pytorch.measure import beside_weights

    return {tensor.data_ptr() for tensor in (*network.parameters(), *beside_weights(network))}


def test_plans_say_what_is_packed(families: dict[str, Path]) -> None:
    """Given a quantisation, then every plan has it and says so, a card's sums are of packed weights, those of networks
    that wait included; and where it alone is missing, that is what is told."""
    backend = BACKENDS["diffusion"]
    header, whole = (
        backend.describe(families["flux"], {"quantization": one} if one else {}) for one in ("bnb-4bit", "")
    )
    plans, plain = list(backend.plans(header, WISH)), list(backend.plans(whole, WISH))
    assert plans[0].words == "parallel 1, bfloat16, linear layers in 4 bits (nf4)"
    assert plain[0].words == "parallel 1, bfloat16"
    assert backend.choices.figures(header, plans[0])["precision"] == "bfloat16, linear layers in 4 bits (nf4)"
    for plan in plans:
        footprint = estimate(header, plan)
        held = arithmetic.weight_bytes(header, plan)
        assert footprint.device.weights + footprint.host.weights == sum(held.values())
        assert held["transformer"] < arithmetic.weight_bytes(whole, plain[0])["transformer"] / 2

    def needs(plan: DrawPlan) -> Footprint:
        return estimate(whole, plan)

    four = estimate(header, plans[0]).amount
    assert backend.choices.instead(plain[0], four, needs) == ["quantization bnb-4bit"]
    assert backend.choices.instead(plain[0], Amount(0, 0), needs) == []


def test_it_is_served_and_says_so(server: Server) -> None:
    """Given a packed Flux in the configuration, then it draws through HTTP, and its status says what is packed."""
    body = {"model": "packed", "prompt": "a red circle", "size": "64x64", "seed": 7}
    one, two = (
        server.post("/v1/images/generations", body, timeout=300).json()["data"][0]["b64_json"] for _ in range(2)
    )
    assert one == two
    assert server.model("packed")["facts"]["precision"] == "float32, linear layers in 4 bits (nf4)"
    capacity = server.get("/v1/capacity?model=packed").json()
    assert capacity["plan"]["further"]["precision"] == "float32, linear layers in 4 bits (nf4)"
