"""All figures of one run of `onecard bench`: the shape of its JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from server.bench.baseline import Baseline
from server.bench.measure import Row


class Report(msgspec.Struct, frozen=True):
    """A model, how it was loaded, and one row per number of streams."""

    model: str
    backend: str
    context: int
    server_parallel: int
    gpu_layers: int
    """-1: all of them."""
    prompt_tokens: int
    generate_tokens: int
    baseline: str
    baseline_missing: str | None
    rows: list[Row]


def with_baseline(rows: Sequence[Row], baseline: Baseline) -> list[Row]:
    """The rows with the baseline's rates beside their own."""
    rates = baseline.tokens_per_s
    return [
        msgspec.structs.replace(
            row, bare_tokens_per_s=rates[row.parallel], efficiency=row.tokens_per_s / rates[row.parallel]
        )
        if rates.get(row.parallel)
        else row
        for row in rows
    ]
