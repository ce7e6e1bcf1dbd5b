"""The samplers there are and their order, the same for all backends; each has its own makers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.messages import Sampling

Stage = Literal[
    "logit_bias", "repetition", "presence_and_frequency", "dry",
    "top_n_sigma", "top_k", "temperature", "typical_p", "top_p", "min_p", "xtc",
    "greedy", "draw", "mirostat",
]  # fmt: skip
"""In the order in which they are applied: edits of the whole row, then what narrows it, then one that ends it.

llama.cpp has the same order but for temperature, which it applies last."""
GREEDY_BELOW: Final = 1e-5
"""Temperatures under this are greedy, as in vLLM: logits divided by them overflow, and the draw is of noise."""
LEAST_SHARE: Final = 1e-30
"""Less likely than this beside the likeliest is impossible: logarithms of nothing spoil typical_p and mirostat."""
LEAST_TEMPERED: Final = 1e-6
"""The same where the temperature follows the entropy: a temperature of nearly nothing divides logits beyond float32."""
WHOLE_OUTPUT: Final = 1 << 17
"""The window of penalties that have none in their definition."""
MIROSTAT_TOKENS: Final = 100
"""Of the likeliest, from which mirostat 1 estimates the slope."""

_ASKED: Final[Mapping[Stage, Callable[[Sampling], bool]]] = {
    "logit_bias": lambda s: bool(s.logit_bias),
    "repetition": lambda s: s.repetition_penalty != 1.0,
    "presence_and_frequency": lambda s: bool(s.presence_penalty or s.frequency_penalty),
    "dry": lambda s: s.dry_multiplier > 0 and s.dry_penalty_last_n != 0,
    "top_n_sigma": lambda s: s.top_n_sigma > 0,
    "top_k": lambda s: s.top_k > 0,
    "temperature": lambda s: s.temperature != 1.0 or s.dynatemp_range > 0,
    "typical_p": lambda s: s.typical_p < 1.0,
    "top_p": lambda s: s.top_p < 1.0,
    "min_p": lambda s: s.min_p > 0.0,
    "xtc": lambda s: s.xtc_probability > 0.0,
}
_EDITS: Final[tuple[Stage, ...]] = ("logit_bias", "repetition", "presence_and_frequency", "dry")
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


def follows_tokens(sampling: Sampling) -> bool:
    """Whether a sampler that has taken in the same tokens goes on as another would have.

    Not one with a seed, whose next number depends on how many were drawn, nor mirostat, which follows surprises.
    """
    last = stages(sampling)[-1]
    return last == "greedy" or (last == "draw" and sampling.seed is None)


def stages(sampling: Sampling) -> list[Stage]:
    """What a choice asks for, in order, and at the end how the token is taken.

    At temperature 0 nothing that narrows the row can change which token is the likeliest.
    """
    if sampling.temperature + sampling.dynatemp_range < GREEDY_BELOW:
        return [*(stage for stage in _EDITS if _ASKED[stage](sampling)), "greedy"]
    return [*(stage for stage, asked in _ASKED.items() if asked(sampling)), "mirostat" if sampling.mirostat else "draw"]
