"""What a configuration says of a network's tensors is what diffusers and transformers build from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.backend import HeaderError
from backends.diffusion import network_shapes, unet_shapes
from backends.diffusion.layer_names import plain
from tests.draw import sparse

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
SD_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
DUAL = {**sparse.SD3_MEDIUM, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}


def built(kind: str, config: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes by names, and the configuration as a folder has it."""
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**config)
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in network.config.items()}
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, said


@pytest.mark.parametrize("config", [{"cross_attention_dim": 768}, SD_2, sparse.SDXL], ids=["1", "2", "xl"])
def test_of_a_u_net(config: dict[str, Any]) -> None:
    """Given Stable Diffusion 1, 2 and XL, then names and shapes are the network's."""
    wanted, said = built("UNet2DConditionModel", {"sample_size": 64, **config})
    assert network_shapes.is_known(said)
    assert unet_shapes.unet(said) == wanted


def test_a_u_net_of_endless_blocks_is_refused_before_they_are_counted_out() -> None:
    """Given a stranger's configuration whose sizes are sound each and of millions of blocks together, then so."""
    _, said = built("UNet2DConditionModel", {"sample_size": 64, **sparse.SDXL})
    endless = {**said, "layers_per_block": 1000, "transformer_layers_per_block": [1000] * len(said["down_block_types"])}
    assert network_shapes.is_known(endless)
    with pytest.raises(HeaderError, match="says up to 6003000 transformer blocks, more than any model has"):
        unet_shapes.unet(endless)


@pytest.mark.parametrize("guidance", [True, False])
def test_of_flux(guidance: bool) -> None:
    """Given Flux dev and schnell, then so."""
    wanted, said = built("FluxTransformer2DModel", {"guidance_embeds": guidance})
    assert network_shapes.flux(said) == wanted


@pytest.mark.parametrize("config", [sparse.SD3_MEDIUM, LARGE, DUAL], ids=["medium", "large", "dual"])
def test_of_stable_diffusion_3(config: dict[str, Any]) -> None:
    """Given 3 medium, 3.5 large and 3.5 medium, then so."""
    wanted, said = built("SD3Transformer2DModel", config)
    assert network_shapes.sd3(said) == wanted


@pytest.mark.parametrize("is_flow", [True, False])
def test_of_an_autoencoder(is_flow: bool) -> None:
    """Given the two that there are, then so."""
    with torch.device("meta"):
        network = sparse._vae(is_flow=is_flow)
    said = dict(network.config)
    assert network_shapes.is_known(said)
    assert unet_shapes.vae(said) == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_of_text_encoders() -> None:
    """Given CLIP with and without a projection, and T5, then so, tensors that are stored twice apart."""
    import transformers

    told = transformers.CLIPTextConfig(vocab_size=49_408, projection_dim=1280, **sparse.CLIP_G)
    for kind, projects in (("CLIPTextModel", False), ("CLIPTextModelWithProjection", True)):
        with torch.device("meta"):
            network = getattr(transformers, kind)(told)
        wanted = {plain(f"text_encoder.{name}"): tuple(one.shape) for name, one in network.state_dict().items()}
        found = network_shapes.clip("text_encoder", told.to_dict(), projects=projects)
        assert {f"text_encoder.{name}": shape for name, shape in found.items()} == wanted
    told = transformers.T5Config(feed_forward_proj="gated-gelu", **sparse.T5_XXL)
    with torch.device("meta"):
        network = transformers.T5EncoderModel(told)
    wanted = {name: tuple(one.shape) for name, one in network.state_dict().items() if "embed_tokens" not in name}
    assert network_shapes.t5("text_encoder_2", told.to_dict()) == wanted


def test_what_is_not_known_says_so(tmp_path: Path) -> None:
    """Given a U-Net with blocks or keys of another kind, then nothing is said of it."""
    _wanted, said = built("UNet2DConditionModel", {"cross_attention_dim": 768})
    for change in (
        {"mid_block_type": "UNetMidBlock2D"},
        {"down_block_types": ["AttnDownBlock2D"] * 4},
        {"layers_per_block": [1, 2, 2, 2]},
        {"only_cross_attention": [True] * 4},
        {"time_embedding_dim": 99},
    ):
        assert not network_shapes.is_known({**said, **change})
