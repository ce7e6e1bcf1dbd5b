"""The bare loop: `llama_decode` and `llama_sampler_sample` on one file, and nothing else. The measure of all the rest.

It has the engine's layout: one KV stream per sequence, one persistent batch filled through numpy views, the same batch
size and threads. Prompts are computed in one pass, then all streams advance together. It shares no code with the
engine that it is the measure of, so it calls llama.cpp itself.

`python -m backends.gguf.bare` answers one question (`backends.workload`) from stdin.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from backends.engine import LoadError
from backends.gguf.context_params import GGML_KV_TYPE
from backends.gguf.threads import sensible_threads
from backends.kv_types import keys_and_values
from backends.messages.plans import CELL_BLOCK
from backends.workload import WARMING_TOKENS, Workload, answer_parent, random_tokens


@dataclass
class Bare:
    """A model, a context and one sampler chain per stream."""

    path: Path
    work: Workload
    _decode_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        work = self.work
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = work.gpu_layers
        self.model = llama_cpp.llama_model_load_from_file(str(self.path).encode(), model_params)
        if not self.model:
            raise LoadError("the bare loop cannot load this file")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-work.context // CELL_BLOCK) * CELL_BLOCK * work.streams
        params.n_batch = params.n_ubatch = max(work.max_batch, work.streams)
        params.n_seq_max = params.n_outputs_max = work.streams
        threads = work.threads or sensible_threads(llama_cpp.llama_model_size(self.model))
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = (GGML_KV_TYPE[kind] for kind in keys_and_values(work.kv_type))
        params.kv_unified = False
        params.swa_full = False
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise LoadError("there is no memory for the bare loop's context")
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self._make_batch(params.n_batch)
        self.samplers = [self._sampler(seed) for seed in range(work.streams)]

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
        if self.work.temperature == 0:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
            return chain
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(self.work.temperature))
        if self.work.top_p < 1:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(self.work.top_p, 1))
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
        work = self.work
        prompt = np.array(random_tokens(work.n_prompt, self.n_vocab, sequence), np.int32)
        for start in range(0, work.n_prompt, work.max_batch):
            chunk = prompt[start : start + work.max_batch]
            n_rows = len(chunk)
            self.tokens[:n_rows] = chunk
            self.positions[:n_rows] = np.arange(start, start + n_rows)
            self.outputs[:n_rows] = 0
            self.outputs[n_rows - 1] = start + n_rows == work.n_prompt
            self._set_sequences(np.full(n_rows, sequence))
            self._decode(n_rows)
        return int(llama_cpp.llama_sampler_sample(self.samplers[sequence], self.context, -1))

    def _set_sequences(self, sequences: NDArray[np.int64]) -> None:
        for row, sequence in enumerate(sequences):
            self.batch.seq_id[row][0] = sequence

    def run(self, n_generate: int) -> dict[str, float]:
        """Run the work once, with so many tokens per answer; tokens/s over all, of decoding, and in `llama_decode`."""
        work, streams = self.work, self.work.streams
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        self._decode_ns = 0
        started = time.perf_counter_ns()
        first = [self._prefill(sequence) for sequence in range(streams)]
        prefilled, self._decode_ns = time.perf_counter_ns(), 0
        self._set_sequences(np.arange(streams))
        self.tokens[:streams] = first
        self.positions[:streams] = work.n_prompt
        self.outputs[:streams] = 1
        sample, chains = llama_cpp.llama_sampler_sample, list(enumerate(self.samplers))
        for _ in range(n_generate - 1):
            self._decode(streams)
            for row, chain in chains:
                self.tokens[row] = sample(chain, self.context, row)
            self.positions[:streams] += 1
        ended = time.perf_counter_ns()
        n_decoded = streams * (n_generate - 1)
        return {
            "tokens_per_s": streams * n_generate / (ended - started) * 1e9,
            "decode_tokens_per_s": n_decoded / (ended - prefilled) * 1e9,
            "llama_decode_tokens_per_s": n_decoded / max(self._decode_ns, 1) * 1e9,
            "step_us": (ended - prefilled) / (n_generate - 1) / 1e3,
            "prefill_ms": (prefilled - started) / 1e6,
        }

    def close(self) -> None:
        """Free everything."""
        for chain in self.samplers:
            llama_cpp.llama_sampler_free(chain)
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def measure(path: Path, work: Workload, *, rounds: int = 1) -> dict[str, float]:
    """Figures of the best of `rounds` runs after a short one that is not counted. Raises LoadError."""
    bare = Bare(path, work)
    bare.run(min(WARMING_TOKENS, work.n_generate))
    runs = [bare.run(work.n_generate) for _ in range(rounds)]
    bare.close()
    return max(runs, key=lambda run: run["tokens_per_s"])


def main() -> None:
    """Answer one parent."""
    answer_parent(lambda question, work: measure(Path(question.path), work))


if __name__ == "__main__":
    main()
