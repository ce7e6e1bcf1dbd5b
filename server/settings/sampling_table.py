"""The table `sampling` of a model: how its tokens are chosen where a request does not say. Owns its keys and bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.options import NO_BOOL
from server.settings.values import Section


class SamplingTable(Section):
    """`sampling = { temperature = 0.7, top_p = 0.8 }`: what a request that leaves a field out gets, over the files'."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), NO_BOOL] | None = None
    """0 takes the likeliest token always."""
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOL] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1), NO_BOOL] | None = None
    """0 is off."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOL] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOL] | None = None
    """1 is off."""
    top_n_sigma: Annotated[float, Field(ge=-1, le=100, allow_inf_nan=False), NO_BOOL] | None = None
    """0 is off."""
    xtc_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOL] | None = None
    """0 is off."""
    xtc_threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOL] | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), NO_BOOL] | None = None
    """0 is off."""
    dynatemp_exponent: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False), NO_BOOL] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2), NO_BOOL] | None = None
    """Its version; 0 is off."""
    mirostat_tau: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NO_BOOL] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_BOOL] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NO_BOOL] | None = None
    """0 is off."""
    dry_base: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False), NO_BOOL] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=2**31 - 1), NO_BOOL] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=2**31 - 1), NO_BOOL] | None = None
    """-1 is all tokens, 0 is off."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False), NO_BOOL] | None = None
    """1 is off."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), NO_BOOL] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), NO_BOOL] | None = None
