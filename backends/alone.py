"""The engine without its server: a workload driven by `Engine.step` in one process.

`python -m backends.alone` answers one question (`backends.workload`) from stdin; it is the baseline of backends that
have no bare loop.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from backends import registry
from backends.engine import AnyEngine
from backends.messages import Failed, Generate, GeneratorPlan, LoadModel, Sampling, Step, TokenPrompt
from backends.workload import WARMING_TOKENS, MeasureQuestion, Workload, answer_parent, random_tokens


def jobs(work: Workload, n_vocab: int, *, first_seed: int = 0) -> list[Generate]:
    """The workload as jobs, with prompts that share no prefix."""
    sampling = Sampling(temperature=work.temperature, top_p=work.top_p if work.temperature else 1.0)
    prompts = [random_tokens(work.n_prompt, n_vocab, first_seed + stream) for stream in range(work.streams)]
    return [
        Generate(id=f"job-{i}", prompt=TokenPrompt(p), sampling=sampling, max_tokens=work.n_generate, ignore_eos=True)
        for i, p in enumerate(prompts)
    ]


def open_engine(path: Path, work: Workload, *, backend: str | None = None) -> AnyEngine:
    """Load the model as a worker would, and collect garbage as one does: not between steps. Raises LoadError.

    Without a backend it is the one that recognises the files.
    """
    found = registry.recognised(path) if backend is None else None
    spec = LoadModel(
        name="bench",
        backend=found[0].name if found is not None else backend or "",
        path=str(path),
        plan=GeneratorPlan(
            work.context,
            work.streams,
            work.kv_type,
            work.gpu_layers,
            device="cuda" if work.gpu_layers else "cpu",
        ),
        threads=work.threads,
    )
    engine = registry.engine_of(spec.backend)(spec, lambda _: None)
    gc.collect()
    gc.freeze()
    gc.disable()
    return engine


def vocabulary_size(engine: AnyEngine) -> int:
    """Token ids of a model of text."""
    facts = engine.ready().text
    assert facts is not None
    return facts.n_vocab


def start(engine: AnyEngine, work: list[Generate]) -> None:
    """Give the engine these jobs. Raises RuntimeError."""
    for job in work:
        prepared = engine.prepare(job)
        if isinstance(prepared, list):
            raise RuntimeError(f"the engine answered {prepared} to a generation")
        engine.add(prepared)


def check(step: Step) -> Step:
    """The step, unless a job failed in it. Raises RuntimeError."""
    failed = [event for event in step.events if isinstance(event, Failed)]
    if failed:
        raise RuntimeError(f"the engine failed a job: {failed[0].message}")
    return step


def throughput(path: Path, work: Workload, *, backend: str | None = None, rounds: int = 1) -> dict[str, float]:
    """Tokens per second of the engine alone, best of `rounds` after a short one that is not counted."""
    engine = open_engine(path, work, backend=backend)
    n_vocab = vocabulary_size(engine)
    best: dict[str, float] = {"tokens_per_s": 0.0}
    for index in range(rounds + 1):
        started = time.perf_counter()
        asked = work if index else replace(work, n_generate=min(WARMING_TOKENS, work.n_generate))
        start(engine, jobs(asked, n_vocab, first_seed=index * work.streams))
        steps = []
        while not engine.idle:
            steps.append(check(engine.step()))
        rate = work.streams * work.n_generate / (time.perf_counter() - started)
        if index and rate > best["tokens_per_s"]:
            decoding = [s.duration_us for s in steps if s.n_decode == work.streams and not s.n_prefill]
            best = {"tokens_per_s": rate, "step_us": float(np.median(decoding)) if decoding else float("nan")}
    engine.close()
    return best


def _answer(question: MeasureQuestion, work: Workload) -> dict[str, float]:
    return throughput(Path(question.path), work, backend=question.backend)


def main() -> None:
    """Answer one parent."""
    answer_parent(
        lambda question, work: throughput(Path(question.path), work, backend=question.backend, rounds=question.rounds)
    )


if __name__ == "__main__":
    main()
