"""Choosing the next token of one sequence with llama.cpp's samplers.

Owns sampler chains. The order is: bias, penalties, top_k, temperature, top_p, min_p, draw; so top_p and min_p see the
distribution after temperature, as in OpenAI's API, vLLM and transformers (top_k commutes with temperature and makes the
rest cheap).
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.gguf.model import Model
    from backends.messages import Sampling

_RANDOM_SEED_OF_LIBRARY = 0xFFFFFFFF
_GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy, as in vLLM: logits divided by them overflow, and the draw is of noise."""


class Sampler:
    """One sequence's chain. `greedy` says that the best logit is all there is to it, so no chain is needed."""

    def __init__(self, sampling: Sampling, *, model: Model, context: int, prompt: Sequence[int], choice: int) -> None:
        """`context` is the pointer of the one whose outputs are chosen from."""
        self._context = context
        penalised = (
            sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        )
        self.greedy = sampling.temperature < _GREEDY_BELOW and not penalised and not sampling.logit_bias
        self._chain = None if self.greedy else self._build(sampling, model, prompt, choice)

    def _build(self, sampling: Sampling, model: Model, prompt: Sequence[int], choice: int) -> int:
        params = llama_cpp.llama_sampler_chain_default_params()
        params.no_perf = True
        chain: int = llama_cpp.llama_sampler_chain_init(params)
        for part in _parts(sampling, model, prompt, choice):
            llama_cpp.llama_sampler_chain_add(chain, part)
        return chain

    def sample(self, row: int) -> int:
        """Draw and accept a token from output `row` of the last decode; not for greedy samplers."""
        token: int = llama_cpp.llama_sampler_sample(self._chain, self._context, row)
        return token

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None


def _parts(sampling: Sampling, model: Model, prompt: Sequence[int], choice: int) -> list[int]:
    """The samplers of a chain in order, as pointers the chain will own."""
    parts: list[int] = []
    if sampling.logit_bias:
        entries = (llama_cpp.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
        parts.append(llama_cpp.llama_sampler_init_logit_bias(model.n_vocab, len(entries), entries))
    if sampling.repetition_penalty != 1.0:
        parts.append(_repetition(sampling.repetition_penalty, model, prompt))
    if sampling.presence_penalty or sampling.frequency_penalty:
        window = 1 << 17  # the whole output: presence and frequency have no window in OpenAI's definition
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        parts.append(llama_cpp.llama_sampler_init_penalties(model.n_vocab, window, 1.0, frequency, presence))
    if sampling.temperature < _GREEDY_BELOW:
        return [*parts, llama_cpp.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        parts.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.temperature != 1.0:
        parts.append(llama_cpp.llama_sampler_init_temp(sampling.temperature))
    if sampling.top_p < 1.0:
        parts.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        parts.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    return [*parts, llama_cpp.llama_sampler_init_dist(_seed(sampling.seed, choice))]


def _repetition(penalty: float, model: Model, prompt: Sequence[int]) -> int:
    """A penalty that has seen the prompt, as in vLLM and transformers."""
    part: int = llama_cpp.llama_sampler_init_penalties(model.n_vocab, 1 << 17, penalty, 0.0, 0.0)
    for token in prompt:
        llama_cpp.llama_sampler_accept(part, token)
    return part


def _seed(seed: int | None, choice: int) -> int:
    """A 32-bit seed that differs per choice and is never the library's word for "random"."""
    if seed is None:
        return secrets.randbelow(_RANDOM_SEED_OF_LIBRARY)
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return (folded + choice * 0x9E3779B9) % _RANDOM_SEED_OF_LIBRARY
