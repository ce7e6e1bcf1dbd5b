"""Activations as they are predicted, against the numbers that live at once in passes of diffusers' own networks."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backends.diffusion.arithmetic import decoder_values, unet_values
from backends.diffusion.header import DrawHeader

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
SIZES = [(128, 128), (128, 192), (192, 128), (192, 192), (256, 128)]
"""Widths and heights."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Beside other tests, threads that wait for each other at every barrier take four times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def most_alive(work: Any, network: Any = None) -> int:
    """The most numbers in tensors of `work`'s own at any moment, of `network`'s weights none: an allocator without
    waste would take as many."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Alive(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            weights = network.state_dict().values() if network is not None else ()
            self.held: dict[int, int] = {one.untyped_storage()._cdata: 0 for one in weights}
            self.most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(made):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in self.held:
                        self.held[storage._cdata] = storage.nbytes() // 4
                        weakref.finalize(storage, self.held.pop, storage._cdata, None)
            self.most = max(self.most, sum(self.held.values()))
            return made

    with torch.inference_mode(), Alive() as alive:
        work()
    return alive.most


def header(**networks: Any) -> DrawHeader:
    """The configurations of networks, as they come out of their files."""
    configs = {name: json.loads(json.dumps(dict(network.config))) for name, network in networks.items()}
    return cast("DrawHeader", SimpleNamespace(scale=8, layers_per_block=2, **configs))


@pytest.fixture(scope="module")
def vae() -> Any:
    """A quarter as wide as Stable Diffusion's."""
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.AutoencoderKL(block_out_channels=(8, 16, 32, 32), layers_per_block=2, norm_num_groups=8, **sides)


@pytest.fixture(scope="module", params=["sd", "xl"])
def unet(request: pytest.FixtureRequest) -> Any:
    """A tenth as wide as Stable Diffusion 1.5's, and as XL's with fewer transformers."""
    common = {"sample_size": 64, "layers_per_block": 2, "cross_attention_dim": 64, "norm_num_groups": 32}
    if request.param == "sd":
        return diffusers.UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), attention_head_dim=8, **common)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128),
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **common,
    )


@pytest.mark.parametrize("n_rows", [2, 8])
def test_a_step_takes_what_is_predicted(unet: Any, n_rows: int) -> None:
    """Given five sizes and two widths of a batch, then the prediction is within 8 % of what lives."""
    for width, height in SIZES:
        latents, time = torch.randn(n_rows, 4, height // 8, width // 8), torch.full((n_rows,), 500)
        prompt = torch.randn(n_rows, 77, 64)
        alive = most_alive(lambda given=(latents, time, prompt): unet(*given, return_dict=False))
        assert unet_values(header(denoiser=unet), n_rows, (width, height)) == pytest.approx(alive, rel=0.08)


def test_a_step_in_slices_takes_less_as_predicted(unet: Any) -> None:
    """Given feed-forward layers in slices, then less lives than without, as much as is predicted."""
    from backends.diffusion.slicing import in_slices

    sliced = copy.deepcopy(unet)
    in_slices(sliced)
    given = torch.randn(2, 4, 16, 24), torch.full((2,), 500), torch.randn(2, 77, 64)
    alive, whole = (most_alive(lambda net=net: net(*given, return_dict=False)) for net in (sliced, unet))
    found = unet_values(header(denoiser=unet), 2, (192, 128), sliced=True)
    assert found == pytest.approx(alive, rel=0.08)
    assert alive < 0.95 * whole


def test_a_decoded_image_takes_what_is_predicted(vae: Any) -> None:
    for width, height in SIZES:
        latents = torch.randn(1, 4, height // 8, width // 8)
        alive = most_alive(lambda given=latents: vae.decode(given, return_dict=False))
        assert decoder_values(header(vae=vae), (width, height)) == pytest.approx(alive, rel=0.08)


def test_so_does_one_in_tiles(vae: Any) -> None:
    """Given an image of several tiles, then it has its size, and what lives is less than of one decoded whole."""
    from backends.diffusion.loading import decode_in_tiles

    size, tiled = (1024, 256), copy.deepcopy(vae)
    decode_in_tiles(tiled, 8)
    latents = torch.randn(1, 4, size[1] // 8, size[0] // 8)
    assert tiled.decode(latents).sample.shape == (1, 3, 256, 1024)
    alive = most_alive(lambda: tiled.decode(latents, return_dict=False))
    found = decoder_values(header(vae=vae), size, tiled=True)
    assert found == pytest.approx(alive, rel=0.08)
    assert found < 0.7 * decoder_values(header(vae=vae), size)
