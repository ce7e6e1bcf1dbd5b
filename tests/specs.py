"""What workers are told to load, written flat as tests want it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.messages import Device, GeneratorPlan, KvTypes, LoadModel


def plan_of(
    context: int,
    parallel: int,
    kv_type: KvTypes = "f16",
    gpu_layers: int = -1,
    device: Device = "cpu",
    kv_tokens: int = 0,
) -> GeneratorPlan:
    """Of a model that generates text."""
    return GeneratorPlan(context, parallel, kv_type, gpu_layers, kv_tokens, device=device)


def spec_of(
    name: str, backend: str, path: str | Path, context: int = 512, parallel: int = 1, **fields: Any
) -> LoadModel:
    """Any model of text: one that gives vectors takes of the plan what it has. `kv_layout`: `unified` is a pool
    for all contexts, `split` none, whatever `kv_tokens` says."""
    planned = {key: fields.pop(key) for key in ("kv_type", "gpu_layers", "device", "kv_tokens") if key in fields}
    layout = fields.pop("kv_layout", None)
    if layout == "unified" and not planned.get("kv_tokens"):
        planned["kv_tokens"] = context * parallel
    elif layout == "split":
        planned.pop("kv_tokens", None)
    return LoadModel(name, backend, str(path), plan_of(context, parallel, **planned), **fields)
