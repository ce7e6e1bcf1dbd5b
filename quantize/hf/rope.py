"""Rotary position parameters: both spellings of config.json, and the factors that llama.cpp wants as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from quantize.errors import QuantizeError
from quantize.hf.config import Config
from quantize.words import shown


@dataclass(frozen=True)
class Rope:
    """Rotation of one kind of layer."""

    theta: float
    kind: str
    """default, linear, yarn, llama3, longrope."""
    values: Config


def rope_of(config: Config, *, layer: str = "full_attention", theta_default: float = 10000.0) -> Rope:
    """The rotation as config.json says it, in `rope_parameters` (also per kind of layer) or in `rope_scaling`."""
    parameters = config.table("rope_parameters")
    nested = parameters.table(layer) if layer in parameters.values else None
    if nested is None and isinstance(parameters.values.get("full_attention"), dict):
        nested = parameters.table("full_attention")
    if nested is not None:
        parameters = nested
    elif not parameters.values:
        parameters = config.table("rope_scaling")
    theta = parameters.number("rope_theta", default=config.number("rope_theta", default=theta_default))
    kind = parameters.text("rope_type", "type", default="default").lower()
    return Rope(theta, "longrope" if kind == "su" else kind, parameters)


def write_rope(writer: Any, rope: Rope, *, n_ctx: int) -> None:
    """Frequency base and scaling of the model's layers. Raises QuantizeError for a kind llama.cpp has not."""
    writer.add_rope_freq_base(rope.theta)
    values = rope.values
    if rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(values.number("factor"))
    elif rope.kind == "yarn":
        _write_yarn(writer, values, n_ctx=n_ctx)
    elif rope.kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    elif rope.kind not in ("default", "llama3"):
        raise QuantizeError(f"the rope scaling {shown(rope.kind)} is not known to llama.cpp")


def _write_yarn(writer: Any, values: Config, *, n_ctx: int) -> None:
    factor = values.number("factor")
    for key in ("mscale", "mscale_all_dim", "attention_factor", "truncate"):
        values.require(key)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(
        values.integer("original_max_position_embeddings", default=max(1, int(n_ctx / factor)))
    )
    if "beta_fast" in values.values:
        writer.add_rope_scaling_yarn_beta_fast(values.number("beta_fast"))
    if "beta_slow" in values.values:
        writer.add_rope_scaling_yarn_beta_slow(values.number("beta_slow"))


def llama3_factors(rope: Rope, *, n_dims: int) -> npt.NDArray[np.float32]:
    """What each frequency is divided by in Llama 3.1 and later, `(n_dims / 2,)`.

    Long waves are stretched by `factor`, short ones stay, between them it is blended over the inverse wavelength:
    the rule of transformers' `_compute_llama3_parameters`.
    """
    values = rope.values
    factor = values.number("factor")
    low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
    original = values.number("original_max_position_embeddings")
    frequencies = rope.theta ** -(np.arange(0, n_dims, 2, dtype=np.float64) / n_dims)
    wavelengths = 2 * math.pi / frequencies
    blend = (original / wavelengths - low) / (high - low)
    middle = 1 / ((1 - blend) / factor + blend)
    stretched = np.where(wavelengths > original / low, factor, middle)
    return np.where(wavelengths < original / high, 1.0, stretched).astype(np.float32)


def longrope_factors(rope: Rope, *, n_dims: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Long and short factors of Phi's long contexts, each `(n_dims / 2,)`."""
    long, short = (np.array(rope.values.numbers(key), np.float32) for key in ("long_factor", "short_factor"))
    if len(long) != n_dims // 2 or len(short) != n_dims // 2:
        raise QuantizeError(
            f"config.json has {len(long)} long and {len(short)} short rope factors, {n_dims // 2} of each are needed"
        )
    return long, short


def longrope_attention_factor(rope: Rope, *, n_ctx: int, n_ctx_original: int) -> float:
    """What cosine and sine are multiplied with; grows with the logarithm of the stretch."""
    if (given := rope.values.number("attention_factor", default=0.0)) > 0:
        return given
    stretch = n_ctx / n_ctx_original
    return math.sqrt(1 + math.log(stretch) / math.log(n_ctx_original)) if stretch > 1 else 1.0
