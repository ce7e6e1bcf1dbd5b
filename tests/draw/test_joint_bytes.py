"""Activations of transformers as they are predicted, against the numbers that live at once in diffusers' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from backends.diffusion.arithmetic import text_values
from backends.diffusion.families import FAMILIES
from backends.diffusion.header import DrawHeader
from backends.diffusion.joint import prompt_tokens, transformer_values
from backends.files.tensors import StoredTensor
from tests.draw import sparse
from tests.draw.test_bytes import most_alive

torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
SIZES = [(128, 128), (128, 192), (256, 256), (256, 128), (384, 256)]
"""Widths and heights."""


def header(pipeline: str, network: Any, most_tokens: int) -> DrawHeader:
    """As it comes out of a folder, with prompts as long as its T5 reads."""
    patch = 2 if pipeline == "FluxPipeline" else network.config.patch_size
    found = {"scale": 8, "patch": patch, "pipeline": pipeline, "family": FAMILIES[pipeline], "most_tokens": most_tokens}
    return cast("DrawHeader", SimpleNamespace(denoiser=dict(network.config), **found))


def sd3(**changes: Any) -> Any:
    """A twelfth as wide as Stable Diffusion 3's."""
    sizes = {"attention_head_dim": 32, "num_attention_heads": 4, "caption_projection_dim": 128, "sample_size": 48}
    rest = {"joint_attention_dim": 64, "pooled_projection_dim": 32, "num_layers": 2, "pos_embed_max_size": 48}
    return diffusers.SD3Transformer2DModel(**sizes, **rest, **changes)


def flux() -> Any:
    """A 24th as wide as Flux."""
    sizes = {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (4, 14, 14)}
    rest = {"joint_attention_dim": 64, "pooled_projection_dim": 32, "num_layers": 2, "num_single_layers": 2}
    return diffusers.FluxTransformer2DModel(guidance_embeds=True, **sizes, **rest)


def given(pipeline: str, network: Any, n_rows: int, size: tuple[int, int], told: int, dtype: Any) -> dict[str, Any]:
    """What a pass is given: latents, a prompt of so many tokens, and times."""
    width, height = size[0] // 8, size[1] // 8
    common = {
        "timestep": torch.full((n_rows,), 0.5, dtype=dtype),
        "pooled_projections": torch.randn(n_rows, 32, dtype=dtype),
        "encoder_hidden_states": torch.randn(n_rows, told, 64, dtype=dtype),
        "return_dict": False,
    }
    if pipeline != "FluxPipeline":
        return {"hidden_states": torch.randn(n_rows, 16, height, width, dtype=dtype), **common}
    n_tokens = height * width // 4
    places = {"img_ids": torch.zeros(n_tokens, 3), "txt_ids": torch.zeros(told, 3)}
    guidance = torch.full((n_rows,), 3.5)
    return {"hidden_states": torch.randn(n_rows, n_tokens, 64, dtype=dtype), "guidance": guidance, **places, **common}


@pytest.mark.parametrize("most_tokens", [256, 512])
def test_a_prompt_that_is_read_takes_no_more_than_is_predicted(most_tokens: int) -> None:
    """Given T5 as wide as its publisher has it, of which no number exists, then what lives while it reads is within the
    prediction, and more than a third of it."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        network = T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **{**sparse.T5_XXL, "num_layers": 2})).eval()
        ids = torch.zeros(1, most_tokens, dtype=torch.long)
        alive = most_alive(lambda: network(ids), network)
    tensors = [StoredTensor(f"t5.{name}", tuple(one.shape), "F16", 0) for name, one in network.state_dict().items()]
    described = cast("DrawHeader", SimpleNamespace(tensors=tensors, most_tokens=most_tokens))
    assert alive <= text_values(described, "t5") < 3 * alive


CASES: dict[str, tuple[str, Any]] = {
    "sd3": ("StableDiffusion3Pipeline", lambda: sd3(qk_norm="rms_norm")),
    "sd3.5": ("StableDiffusion3Pipeline", lambda: sd3(qk_norm="rms_norm", dual_attention_layers=(0,))),
    "flux": ("FluxPipeline", flux),
}


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("case", CASES)
def test_a_step_takes_what_is_predicted(case: str, bits: int) -> None:
    """Given five sizes, two widths of a batch and two lengths of prompts, then the prediction is within 8 % of what
    lives."""
    pipeline, build = CASES[case]
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    network = build().to(dtype).eval()
    for n_rows, most_tokens, size in zip((1, 2, 1, 2, 1), (16, 16, 128, 16, 128), SIZES, strict=True):
        described = header(pipeline, network, most_tokens)
        work = given(pipeline, network, n_rows, size, prompt_tokens(described), dtype)
        alive = most_alive(lambda work=work: network(**work), network) * 32 // bits
        found = transformer_values(described, n_rows, size, is_half=bits == 16)
        assert found == pytest.approx(alive, rel=0.08)
