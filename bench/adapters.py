"""Adapters: 8 streams of a model and four LoRA adapters of it, against 8 of the model alone, in turn.

Alone it is measured on an engine without adapters, and on the one that has them.

The adapters are random, of rank 8 on all linear layers (`all`) or on query and value (`qv`): what peft's users take.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from backends import registry
from backends.alone import check, jobs, start, vocabulary_size
from backends.engine import AnyEngine
from backends.messages import GeneratorPlan, LoadModel
from backends.workload import Workload
from bench import folder, model
from bench.model import OUT, Shape
from demo.names import gguf_name
from server.bench.figures import median

RANK: Final = 8
STREAMS: Final = 8
N_ADAPTERS: Final = 4
TARGETS: Final[Mapping[str, Sequence[str]]] = {
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qv": ("q_proj", "v_proj"),
}


def measure(rounds: int, backends: Sequence[str] = ("bnb", "gguf")) -> dict[str, float]:
    """Tokens per second and their ratio, by backend and by what the adapters change; medians of turns."""
    shape = Shape()
    figures: dict[str, float] = {}
    for backend in backends:
        base = folder.path(shape) if backend == "bnb" else model.path()
        for kind in TARGETS:
            made = {f"a{n}": _adapter(backend, shape, kind, n) for n in range(N_ADAPTERS)}
            plain, engine = _open(backend, base, {}), _open(backend, base, made)
            turns = [(plain, [""]), (engine, [""]), (engine, ["", *made])]
            rates: list[list[float]] = [[] for _ in turns]
            for turn in range(rounds + 1):
                for n, (one, names) in enumerate(turns):
                    rate = _rate(one, names, 3 * turn + n)
                    if turn:  # the first is to warm up
                        rates[n].append(rate)
            plain.close()
            engine.close()
            name = f"{backend}, {kind}"
            for n, what in enumerate(("without adapters", "base alone", f"base and {N_ADAPTERS} adapters")):
                figures[f"{name}: {what}, tokens/s"] = median(rates[n])
            for n, what in enumerate(("without adapters", "base alone")):
                figures[f"{name}: ratio to {what}"] = median([m / a for m, a in zip(rates[2], rates[n], strict=True)])
    return figures


def _open(backend: str, base: Path, adapters: Mapping[str, Path]) -> AnyEngine:
    named = {"adapters": json.dumps({name: str(path) for name, path in adapters.items()})}
    spec = LoadModel("bench", backend, str(base), GeneratorPlan(512, STREAMS), options=dict(named))
    engine = registry.engine_of(backend)(spec, lambda _: None)
    facts = engine.ready().generator
    assert facts is not None
    assert not any(facts.adapters.values()), facts.adapters
    return engine


def _rate(engine: AnyEngine, names: Sequence[str], seed: int) -> float:
    """Tokens per second from the first step without a prompt to the last in which every stream runs."""
    work = Workload(streams=STREAMS, n_prompt=16, n_generate=96)
    asked: list[Any] = jobs(work, vocabulary_size(engine), first_seed=1000 * seed)
    start(engine, [msgspec.structs.replace(job, adapter=names[i % len(names)]) for i, job in enumerate(asked)])
    micros = tokens = n_done = 0
    while not engine.idle:
        step = check(engine.step())
        n_done += step.n_decode
        if not step.n_prefill and STREAMS <= n_done <= STREAMS * (work.n_generate - 4):
            micros += step.duration_us
            tokens += step.n_decode
    return tokens / (micros / 1e6)


def _adapter(backend: str, shape: Shape, kind: str, number: int) -> Path:
    """Random matrices; made on the first call."""
    target = OUT / f"adapter-{kind}-{shape.n_layers}x{shape.n_embd}-{number}{'.gguf' if backend == 'gguf' else ''}"
    if target.exists():
        return target
    pairs = _matrices(shape, kind, np.random.default_rng(number))
    if backend == "gguf":
        _write_gguf(target, pairs)
        return target
    part = OUT / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_file(
        {f"base_model.model.{layer}.lora_{side}.weight": m for (layer, side), m in pairs.items()},
        part / "adapter_model.safetensors",
    )
    (part / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    part.rename(target)
    return target


def _matrices(shape: Shape, kind: str, rng: np.random.Generator) -> dict[tuple[str, str], NDArray[np.float32]]:
    kv = shape.n_embd * shape.n_heads_kv // shape.n_heads
    sizes = {"k_proj": (shape.n_embd, kv), "v_proj": (shape.n_embd, kv), "down_proj": (shape.n_ff, shape.n_embd)}
    sizes |= dict.fromkeys(("gate_proj", "up_proj"), (shape.n_embd, shape.n_ff))
    made = {}
    for layer in range(shape.n_layers):
        for name in TARGETS[kind]:
            width, out = sizes.get(name, (shape.n_embd, shape.n_embd))
            full = (
                f"model.layers.{layer}.{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}"
            )
            made[full, "A"] = (rng.standard_normal((RANK, width)) / np.sqrt(width)).astype(np.float32)
            made[full, "B"] = (rng.standard_normal((out, RANK)) * 0.01).astype(np.float32)
    return made


def _write_gguf(target: Path, pairs: Mapping[tuple[str, str], NDArray[np.float32]]) -> None:
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", RANK)
    for (layer, side), matrix in pairs.items():
        writer.add_tensor(f"{gguf_name(f'{layer}.weight')}.lora_{side.lower()}", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
