"""Choosing the next token of one sequence with llama.cpp's samplers.

Owns sampler chains, in the order of `backends.generation.sampler_order`: top_p and min_p see the distribution after
temperature, as in OpenAI's API, vLLM and transformers (top_k commutes with temperature and makes the rest cheap).
"""

from __future__ import annotations

import ctypes
import secrets
from typing import TYPE_CHECKING, Final

import llama_cpp

from backends.generation.sampler_order import LEAST_SHARE, LEAST_TEMPERED, MIROSTAT_TOKENS, WHOLE_OUTPUT, stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from backends.generation.sampler_order import Stage
    from backends.gguf.model import Model
    from backends.messages import Sampling

_RANDOM_SEED_OF_LIBRARY = 0xFFFFFFFF
_XTC_SEED = 0x85EBCA6B
"""Its numbers are others than those of the draw."""


class Sampler:
    """One sequence's chain. `greedy` says that the best logit is all there is to it, so no chain is needed."""

    def __init__(self, sampling: Sampling, *, model: Model, context: int, prompt: Sequence[int], choice: int) -> None:
        """`context` is the pointer of the one whose outputs are chosen from."""
        self._context = context
        order = stages(sampling)
        self.greedy = order == ["greedy"]
        self._chain = None if self.greedy else chain_of(order, sampling, model=model, prompt=prompt, choice=choice)

    def sample(self, row: int) -> int:
        """Draw and accept a token from output `row` of the last decode; not for greedy samplers."""
        token: int = llama_cpp.llama_sampler_sample(self._chain, self._context, row)
        return token

    def accept(self, token: int) -> None:
        """Take in a token that another sampler of the same rules has drawn."""
        if self._chain is not None:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None


def chain_of(order: Iterable[Stage], sampling: Sampling, *, model: Model, prompt: Sequence[int], choice: int) -> int:
    """A chain of these stages, which its caller frees."""
    params = llama_cpp.llama_sampler_chain_default_params()
    params.no_perf = True
    chain: int = llama_cpp.llama_sampler_chain_init(params)
    for stage in order:
        for part in MAKERS[stage](sampling, model, prompt, choice):
            llama_cpp.llama_sampler_chain_add(chain, part)
    return chain


def _bias(sampling: Sampling, model: Model, _prompt: Sequence[int], _choice: int) -> list[int]:
    entries = (llama_cpp.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
    return [llama_cpp.llama_sampler_init_logit_bias(model.n_vocab, len(entries), entries)]


def _repetition(sampling: Sampling, model: Model, prompt: Sequence[int], _choice: int) -> list[int]:
    """A penalty that has seen the prompt, as in vLLM and transformers."""
    penalty = sampling.repetition_penalty
    return [_seen(llama_cpp.llama_sampler_init_penalties(model.n_vocab, WHOLE_OUTPUT, penalty, 0.0, 0.0), prompt)]


def _presence(sampling: Sampling, model: Model, _prompt: Sequence[int], _choice: int) -> list[int]:
    """Of the whole output: presence and frequency have no window in OpenAI's definition."""
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    return [llama_cpp.llama_sampler_init_penalties(model.n_vocab, WHOLE_OUTPUT, 1.0, frequency, presence)]


def _dry(sampling: Sampling, model: Model, prompt: Sequence[int], _choice: int) -> list[int]:
    """It looks back into the prompt too, as in llama.cpp's own server."""
    breakers = [text.encode() for text in sampling.dry_sequence_breakers]
    last_n = WHOLE_OUTPUT if sampling.dry_penalty_last_n < 0 else min(sampling.dry_penalty_last_n, WHOLE_OUTPUT)
    part = llama_cpp.llama_sampler_init_dry(
        llama_cpp.llama_model_get_vocab(model.pointer),
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        last_n,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )
    return [_seen(part, prompt)]


def _temperature(sampling: Sampling, _model: Model, _prompt: Sequence[int], _choice: int) -> list[int]:
    if sampling.dynatemp_range > 0:
        span, exponent = sampling.dynatemp_range, sampling.dynatemp_exponent
        tempered = llama_cpp.llama_sampler_init_temp_ext(sampling.temperature, span, exponent)
        return [llama_cpp.llama_sampler_init_min_p(LEAST_TEMPERED, 1), tempered]
    return [llama_cpp.llama_sampler_init_temp(sampling.temperature)]


def _xtc(sampling: Sampling, _model: Model, _prompt: Sequence[int], choice: int) -> list[int]:
    seed = (_seed(sampling.seed, choice) ^ _XTC_SEED) % _RANDOM_SEED_OF_LIBRARY
    return [llama_cpp.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed)]


def _mirostat(sampling: Sampling, model: Model, _prompt: Sequence[int], choice: int) -> list[int]:
    seed, tau, eta = _seed(sampling.seed, choice), sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        last = llama_cpp.llama_sampler_init_mirostat(model.n_vocab, seed, tau, eta, MIROSTAT_TOKENS)
        return [_possible(), last]
    return [_possible(), llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)]


def _possible() -> int:
    """Leaves what can be drawn at all."""
    part: int = llama_cpp.llama_sampler_init_min_p(LEAST_SHARE, 1)
    return part


def _seen(part: int, prompt: Sequence[int]) -> int:
    for token in prompt:
        llama_cpp.llama_sampler_accept(part, token)
    return part


MAKERS: Final[Mapping[Stage, Callable[[Sampling, Model, Sequence[int], int], list[int]]]] = {
    "logit_bias": _bias,
    "repetition": _repetition,
    "presence_and_frequency": _presence,
    "dry": _dry,
    "top_n_sigma": lambda s, *_: [llama_cpp.llama_sampler_init_top_n_sigma(s.top_n_sigma)],
    "top_k": lambda s, *_: [llama_cpp.llama_sampler_init_top_k(s.top_k)],
    "temperature": _temperature,
    "typical_p": lambda s, *_: [_possible(), llama_cpp.llama_sampler_init_typical(s.typical_p, 1)],
    "top_p": lambda s, *_: [llama_cpp.llama_sampler_init_top_p(s.top_p, 1)],
    "min_p": lambda s, *_: [llama_cpp.llama_sampler_init_min_p(s.min_p, 1)],
    "xtc": _xtc,
    "greedy": lambda *_: [llama_cpp.llama_sampler_init_greedy()],
    "draw": lambda s, _model, _prompt, choice: [llama_cpp.llama_sampler_init_dist(_seed(s.seed, choice))],
    "mirostat": _mirostat,
}
"""The samplers of each stage, as pointers that a chain will own."""


def _seed(seed: int | None, choice: int) -> int:
    """A 32-bit seed that differs per choice and is never the library's word for "random"."""
    if seed is None:
        return secrets.randbelow(_RANDOM_SEED_OF_LIBRARY)
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return (folded + choice * 0x9E3779B9) % _RANDOM_SEED_OF_LIBRARY
