"""The keys of `[models.NAME]` that only folders have, named as in transformers' `BitsAndBytesConfig`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.options import NO_BOOL, AdapterOptions, ImageOptions, StrList


class FolderOptions(AdapterOptions, ImageOptions):
    """How bitsandbytes loads a folder."""

    quantization: Literal["bnb-4bit", "bnb-8bit", "none"] = "none"
    """Of a folder whose weights are not stored quantised."""
    trust_remote_code: bool = False
    """Run the Python code that the folder brings; it can do whatever the server's user can."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """How 4 bits hold a weight: `nf4` suits normally distributed weights, `fp4` is a small float."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the scales of 4-bit weights too, which saves 0.4 bits a weight."""
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The type in which 4-bit weights are multiplied."""
    llm_int8_threshold: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), NO_BOOL] = 0.0
    """Activations above it are computed in 16 bits; 0: none are, which is faster and keeps requests independent."""
    llm_int8_skip_modules: StrList = Field(default=[])
    """Parts of names of layers that stay as they are, in 4 bits too."""
    quantize_vision: bool = False
    """Quantise the part of a model that sees too; false: it stays in 16 bits, and sees as it was trained."""
