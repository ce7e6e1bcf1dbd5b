"""What a measurement computes, and the question a parent process asks a measuring child: plain data, no engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from backends.messages import KvType

WARMING_TOKENS = 8
"""Of each answer of a first run that is not counted."""


@dataclass(frozen=True)
class Workload:
    """`streams` prompts of `n_prompt` tokens at once, each continued by `n_generate` tokens."""

    streams: int = 1
    n_prompt: int = 32
    n_generate: int = 256
    context: int = 2048
    max_batch: int = 512
    threads: int = 0
    """0: as many as the engine would take for this model."""
    temperature: float = 0.0
    top_p: float = 0.95
    kv_type: KvType = "f16"
    gpu_layers: int = 0
    """Layers on the GPU; -1 means all."""


class Question(msgspec.Struct, frozen=True):
    """The same workload at several numbers of streams; the child answers with a JSON line of figures per run."""

    path: str
    backend: str
    workload: Workload
    streams: list[int]
    rounds: int = 1

    def workloads(self) -> Iterator[Workload]:
        """One per round and number of streams, each on a fresh context.

        A round is one run of every number, so that a machine's slow moment does not fall on one number alone.
        """
        return (replace(self.workload, streams=streams) for _ in range(self.rounds) for streams in self.streams)
