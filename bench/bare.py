"""The bare loop: `llama_decode` and `llama_sampler_sample` on one file, and nothing else. The measure of all the rest.

It has the engine's layout: one KV stream per sequence, one persistent batch filled through numpy views, the same batch
size and threads. Prompts are computed in one pass, then all streams advance together.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Load:
    """What is computed: `streams` prompts of `n_prompt` tokens, each continued by `n_generate` tokens."""

    streams: int = 1
    n_prompt: int = 32
    n_generate: int = 256
    context: int = 2048
    max_batch: int = 512
    threads: int = 0
    temperature: float = 0.0
    top_p: float = 0.95


@dataclass
class Bare:
    """A model, a context and one sampler chain per stream."""

    path: Path
    load: Load
    _decode_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        load = self.load
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = -1
        self.model = llama_cpp.llama_model_load_from_file(str(self.path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = load.context * load.streams
        params.n_batch = params.n_ubatch = max(load.max_batch, load.streams)
        params.n_seq_max = params.n_outputs_max = load.streams
        params.n_threads = params.n_threads_batch = load.threads or len(os.sched_getaffinity(0))
        params.kv_unified = False
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("no context for the bare loop")
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self._make_batch(params.n_batch)
        self.samplers = [self._sampler(seed) for seed in range(load.streams)]

    def _make_batch(self, n_rows: int) -> None:
        self.batch = llama_cpp.llama_batch_init(n_rows, 0, 1)
        self.tokens: NDArray[np.int32] = np.ctypeslib.as_array(self.batch.token, (n_rows,))
        self.positions: NDArray[np.int32] = np.ctypeslib.as_array(self.batch.pos, (n_rows,))
        self.outputs: NDArray[np.int8] = np.ctypeslib.as_array(self.batch.logits, (n_rows,))
        np.ctypeslib.as_array(self.batch.n_seq_id, (n_rows,))[:] = 1

    def _sampler(self, seed: int) -> Any:
        params = llama_cpp.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = llama_cpp.llama_sampler_chain_init(params)
        if self.load.temperature == 0:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
            return chain
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(self.load.temperature))
        if self.load.top_p < 1:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(self.load.top_p, 1))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(seed))
        return chain

    def _decode(self, n_rows: int) -> None:
        self.batch.n_tokens = n_rows
        started = time.perf_counter_ns()
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(self.context)
        self._decode_ns += time.perf_counter_ns() - started

    def _prefill(self, sequence: int) -> int:
        """Compute one prompt in chunks of the batch size; its first token."""
        load = self.load
        prompt = np.random.default_rng(sequence).integers(48, 58, load.n_prompt, np.int32)
        for start in range(0, load.n_prompt, load.max_batch):
            chunk = prompt[start : start + load.max_batch]
            n_rows = len(chunk)
            self.tokens[:n_rows] = chunk
            self.positions[:n_rows] = np.arange(start, start + n_rows)
            self.outputs[:n_rows] = 0
            self.outputs[n_rows - 1] = start + n_rows == load.n_prompt
            self._set_sequences(np.full(n_rows, sequence))
            self._decode(n_rows)
        return int(llama_cpp.llama_sampler_sample(self.samplers[sequence], self.context, -1))

    def _set_sequences(self, sequences: NDArray[np.int64]) -> None:
        for row, sequence in enumerate(sequences):
            self.batch.seq_id[row][0] = sequence

    def run(self) -> dict[str, float]:
        """Run the load once; tokens per second over all, of decoding alone, and inside `llama_decode`."""
        load, streams = self.load, self.load.streams
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        self._decode_ns = 0
        started = time.perf_counter_ns()
        first = [self._prefill(sequence) for sequence in range(streams)]
        prefilled, self._decode_ns = time.perf_counter_ns(), 0
        self._set_sequences(np.arange(streams))
        self.tokens[:streams] = first
        self.positions[:streams] = load.n_prompt
        self.outputs[:streams] = 1
        sample, chains = llama_cpp.llama_sampler_sample, list(enumerate(self.samplers))
        for _ in range(load.n_generate - 1):
            self._decode(streams)
            for row, chain in chains:
                self.tokens[row] = sample(chain, self.context, row)
            self.positions[:streams] += 1
        ended = time.perf_counter_ns()
        n_decoded = streams * (load.n_generate - 1)
        return {
            "tokens_per_s": streams * load.n_generate / (ended - started) * 1e9,
            "decode_tokens_per_s": n_decoded / (ended - prefilled) * 1e9,
            "llama_decode_tokens_per_s": n_decoded / max(self._decode_ns, 1) * 1e9,
            "step_us": (ended - prefilled) / (load.n_generate - 1) / 1e3,
            "prefill_ms": (prefilled - started) / 1e6,
        }

    def close(self) -> None:
        """Free everything."""
        for chain in self.samplers:
            llama_cpp.llama_sampler_free(chain)
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def measure(path: Path, load: Load, *, rounds: int = 1) -> dict[str, float]:
    """Figures of the best of `rounds` runs after one that is not counted."""
    bare = Bare(path, load)
    bare.run()
    runs = [bare.run() for _ in range(rounds)]
    bare.close()
    return max(runs, key=lambda run: run["tokens_per_s"])
