"""Stable Diffusion 3 and Flux with adapters, and with networks that wait: what peft computes, and the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.diffusion.kind import Draw, DrawPlan
from tests.draw.families import PROMPT
from tests.draw.loading import loaded
from tests.draw.test_engine import drawn

pytestmark = pytest.mark.engine
torch = pytest.importorskip("torch", reason="the extra `images` brings torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
PIPELINES = {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}
LAYERS = ["to_q", "add_k_proj", "to_out.0", "ff.net.2", "proj_mlp", "norm1.linear", "x_embedder", "context_embedder"]


def saved(pipe: Any, kind: Any, path: Path) -> Path:
    """Random adapters of the transformer and of its first text encoder, in the pipeline and in a folder."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    torch.manual_seed(1)
    configs = {
        "transformer": LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, init_lora_weights=False),
        "text_encoder": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"], init_lora_weights=False),
    }
    for part, config in configs.items():
        inject_adapter_in_model(config, getattr(pipe, part))
    kind.save_lora_weights(
        path,
        **{f"{part}_lora_layers": get_peft_model_state_dict(getattr(pipe, part)) for part in configs},
        **{f"{part}_lora_adapter_metadata": config.to_dict() for part, config in configs.items()},
    )
    return path


@pytest.mark.parametrize("shape", list(PIPELINES))
def test_adapters_draw_what_peft_draws(shape: str, families: dict[str, Path], tmp_path: Path) -> None:
    """Given adapters of a transformer and a text encoder, then images are peft's within rounding, the base's are as
    without any, and none differs by a byte when networks come from host memory, whatever else is drawn at once."""
    from tests.draw.test_engine import by_diffusers

    kind = getattr(diffusers, PIPELINES[shape])
    pipe = kind.from_pretrained(families[shape], dtype=torch.float32)
    style = saved(pipe, kind, tmp_path / "style")
    base = Draw("base", PROMPT, 96, 64, seed=1, steps=3, guidance=3.0)
    styled = Draw("styled", PROMPT, 96, 64, seed=1, steps=3, guidance=3.0, adapter="style")
    engine = loaded(families[shape], DrawPlan(parallel=2), style=style)
    assert engine.ready().facts.adapters == {"style": ""}
    ours, bare = (drawn(engine, job)[0] for job in (styled, base))
    theirs = by_diffusers(pipe, 1, prompt=PROMPT, num_inference_steps=3, guidance_scale=3.0)
    assert abs(ours - theirs).max() <= 1
    assert abs(ours - bare).max() > 1
    assert (drawn(loaded(families[shape], DrawPlan(parallel=2)), base)[0] == bare).all()
    for offload in ("text", "parts", "all"):
        waiting = loaded(families[shape], DrawPlan(parallel=2, offload=offload), style=style)
        both = drawn(waiting, base, styled)
        assert all((a == b).all() for a, b in zip(both, (bare, ours), strict=True)), offload
