"""The nucleus of one row of logits: as if the whole vocabulary had been sorted, however flat it is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from backends.bnb.sampling import RowSampler
from backends.messages import Sampling

N_VOCAB = 20_000
TOP_P = 0.9


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_nucleus_is_that_of_the_sorted_vocabulary(spread: float, temperature: float) -> None:
    logits = (np.random.default_rng(1).standard_normal(N_VOCAB) * spread).astype(np.float32)
    scaled = logits / np.float32(temperature)
    order = np.argsort(-scaled, kind="stable")
    shares = np.exp((scaled[order] - scaled.max()).astype(np.float64)).cumsum()
    kept = order[: int(np.searchsorted(shares, TOP_P * shares[-1])) + 1]
    sums = np.exp((scaled[kept] - scaled.max()).astype(np.float64)).cumsum()

    for seed in range(20):
        sampling = Sampling(temperature=temperature, top_p=TOP_P, seed=seed)
        sampler = RowSampler(sampling, prompt=(), choice=0, row_of=lambda _: logits.copy())
        drawn = random.Random(f"{seed}/0").random()
        assert sampler.sample(0) == kept[int(np.searchsorted(sums, drawn * sums[-1], side="right"))]
