"""A child that may take no more than so much memory: what its engine says, as JSON. For `test_shortage`.

`cells` runs short where a model's cells, which are fat, are taken: at a load, and when a row grows. `passes` runs short
in passes: its model takes scratch memory by the token, far more than anything else in the process, and asks PyTorch for
it in front of each. Its texts depend on every token before them (CANARY-KV).
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backends.bnb.loading import load
from backends.engine import Engine, LoadError
from backends.gguf.loading import load as load_file
from backends.machine.kernel import give_back_freed
from backends.messages import Failed, Generate, LoadModel, Sampling, Store, TokenPrompt
from tests.gguf.driver import run, text_job
from tests.models import canary_kv
from tests.specs import spec_of

MIB = 2**20
PROMPT = "the quick brown fox jumps over the lazy dog " * 14
FREE_MIB = 600
"""What `passes` may take: enough for passes of 96 tokens, and not for those of 192."""
SCRATCH_MIB = 4
"""Of one token."""
DEEP = 500
"""From this position on one token alone takes more than there is."""


def may_take(n_bytes: int | None) -> None:
    """Let this process's address space grow by so much from now on; None: as it likes."""
    limit = resource.RLIM_INFINITY if n_bytes is None else held_bytes() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def held_bytes() -> int:
    """The address space of this process, without what is held no more."""
    gc.collect()
    give_back_freed()
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmSize:"))
    return int(line.split()[1]) * 1024


@dataclass
class Scratch:
    """Memory that is taken for each pass, and never written to."""

    passes: list[tuple[int, bool]] = field(default_factory=list)
    """Tokens, and whether there was memory for them."""

    def __call__(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        positions = given["position_ids"]
        n_deep = int((positions >= DEEP).sum())
        n_bytes = (positions.numel() * SCRATCH_MIB + n_deep * FREE_MIB) * MIB
        self.passes.append((positions.numel(), False))
        torch.empty(n_bytes, dtype=torch.uint8)
        self.passes[-1] = (positions.numel(), True)


def load_short(spec: LoadModel, progress: Callable[[float], None]) -> Engine:
    """What a real worker loads with (ONECARD_TEST_ENGINE): a folder's passes are short of memory, a file's are not."""
    if spec.backend == "gguf":
        return load_file(spec, progress)
    engine: Any = load(spec, progress)
    engine._context._runner._model.register_forward_pre_hook(Scratch(), with_kwargs=True)
    may_take(FREE_MIB * MIB)
    return engine


def fat_job(name: str, *, times: int = 1) -> Generate:
    """A job for the model with fat cells."""
    return text_job(f"{name} {PROMPT * times}", id=name, **_likeliest(20))


def canary_job(name: str, n_prompt: int, *, n: int = 20) -> Generate:
    """A job for CANARY-KV, which shares no prefix with others and leaves none."""
    tokens = canary_kv.prompt(sum(name.encode()), n_prompt)
    return Generate(name, TokenPrompt(tokens), cache_prompt=False, **_likeliest(n))


def _likeliest(n: int) -> dict[str, Any]:
    return {"max_tokens": n, "ignore_eos": True, "sampling": Sampling(temperature=0.0)}


def said(engine: Engine, *jobs: Generate) -> dict[str, str]:
    """Each job's text, or the reason why there is none."""
    outcomes = dict(zip((job.id for job in jobs), run(engine, jobs), strict=True))
    return {
        name: f"{one.end.code}: {one.end.message}" if isinstance(one.end, Failed) else one.text()
        for name, one in outcomes.items()
    }


def cells(folder: str) -> dict[str, Any]:
    """A load that finds no memory for its cells, and a row that cannot grow."""
    fields: dict[str, Any] = {"context": 512, "parallel": 3, "threads": 1}
    found: dict[str, Any] = {}
    may_take(100 * MIB)
    try:
        load(spec_of("fat", "bnb", folder, **fields), lambda _: None)
    except LoadError as error:
        found["load"] = [error.message, error.out_of_memory]
    may_take(None)
    engine = load(spec_of("fat", "bnb", folder, **fields, kv_tokens=1024, kv_layout="unified"), lambda _: None)
    found["before"] = said(engine, *(fat_job(name) for name in "abc"))
    may_take(4 * MIB)  # a third of the least by which a row grows
    found["never"] = said(engine, fat_job("never", times=3))
    may_take(None)
    found["after"] = said(engine, *(fat_job(name) for name in "abc"))
    engine.close()
    return found


def passes(folder: str, store: Store | None) -> dict[str, Any]:
    """A model whose passes take memory by the token, and at some depth more than there is."""
    # A gap so long that time decides nothing: passes are as long on every processor.
    fields: dict[str, Any] = {"context": 1024, "parallel": 3, "threads": 1, "store": store, "max_itl_ms": 60_000.0}
    engine: Any = load(spec_of("kv", "bnb", folder, **fields, kv_tokens=2048, kv_layout="unified"), lambda _: None)
    a, b, c = (canary_job(name, 130) for name in "abc")
    deep, long = canary_job("deep", DEEP + 100), canary_job("long", 20, n=200)
    found: dict[str, Any] = {"alone": {job.id: said(engine, job)[job.id] for job in (a, b, c, deep, long)}}
    scratch = Scratch()
    hook = engine._context._runner._model.register_forward_pre_hook(scratch, with_kwargs=True)
    may_take(FREE_MIB * MIB)
    scenes = {
        "together": [a, b, c],
        "oldest": [deep, a, b],
        "youngest": [a, b, deep],
        "later": [long],
        "again": [a, b, c],
    }
    for name, jobs in scenes.items():
        held = held_bytes()
        scratch.passes.clear()
        texts = said(engine, *jobs)
        found[name] = {"texts": texts, "passes": scratch.passes[:], "more_bytes": held_bytes() - held}
    may_take(None)
    hook.remove()
    found["after"] = said(engine, a, deep, b)
    engine.close()
    return found


def main(kind: str, folder: str, kept: str) -> dict[str, Any]:
    return cells(folder) if kind == "cells" else passes(folder, Store(kept, 512 * MIB) if kept else None)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
