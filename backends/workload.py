"""What a measurement computes, and the question that a parent process asks a measuring child. No engine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec

from backends.machine.kernel import die_with, limit_damage
from backends.messages import KvTypes

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
    kv_type: KvTypes = "f16"
    gpu_layers: int = 0
    """Layers on the GPU; -1 means all."""


class MeasureQuestion(msgspec.Struct, frozen=True):
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


Measure = Callable[[MeasureQuestion, Workload], dict[str, float]]


def answer_parent(measure: Measure) -> None:
    """In the child: read one question from stdin and print a JSON line of figures per run; end with the parent."""
    die_with(os.getppid())
    limit_damage()
    question = msgspec.json.decode(sys.stdin.readline(), type=MeasureQuestion)
    for workload in question.workloads():
        sys.stdout.write(json.dumps({"streams": workload.streams, **measure(question, workload)}) + "\n")
        sys.stdout.flush()


def random_tokens(n_tokens: int, n_vocab: int, seed: int) -> list[int]:
    """Token ids from all over the vocabulary, so that a mixture of experts is asked as text would ask it."""
    import numpy as np  # a child's: the server has none

    return [int(token) for token in np.random.default_rng(seed).integers(0, n_vocab, n_tokens)]
