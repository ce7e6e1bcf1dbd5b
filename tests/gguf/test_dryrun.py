"""The arithmetic of the header against llama.cpp's own figures: dry loads of many shapes, and the real load of some."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.gguf.context import Context
from backends.gguf.library_log import LibraryLog
from backends.gguf.loading import load, parts_on_card
from backends.gguf.model import Model
from backends.messages import GeneratorPlan, KvTypes
from backends.registry import BACKENDS, estimate
from tests.models.shapes import LLAMA, SHAPES, Shape, build
from tests.specs import plan_of, spec_of

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
ROUNDED = 5_300
"""llama.cpp tells sizes rounded to hundredths of a MiB."""
MIB = 2**20
SIZES: list[tuple[int, int, KvTypes]] = [
    (8192, 2, "f16"),
    (512, 1, "f16"),
    (2048, 8, "q8_0"),
    (4096, 3, "q4_0"),
    (1000, 4, "f32"),
    (4096, 2, "q8_0/q4_0"),
    (4096, 2, "f32/q8_0"),
    (2048, 2, "f16/q5_1"),
]
PLANS = [plan_of(context, parallel, kv_type, 0, "cpu") for context, parallel, kv_type in SIZES] + [
    plan_of(4096, 4, "f16", 0, "cpu", 6000),
    plan_of(2048, 3, "q8_0", 0, "cpu", 2048),
]


def question(path: Path, plans: list[GeneratorPlan] = PLANS) -> dict[str, Any]:
    return {"path": str(path), "gpu_layers": 0, "plans": [msgspec.to_builtins(plan) for plan in plans]}


def ask(*questions: dict[str, Any]) -> list[dict[str, Any]]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "backends.gguf.dryrun", "--fd", str(theirs.fileno())]
    child = subprocess.Popen(
        [*command, "--parent", str(os.getpid())], pass_fds=[theirs.fileno()], env={"PYTHONPATH": str(ROOT)}
    )
    theirs.close()
    ours.settimeout(60)
    with child, ours, ours.makefile("rw", encoding="utf-8") as line:
        told = []
        for question in questions:
            line.write(json.dumps(question) + "\n")
            line.flush()
            told.append(json.loads(line.readline()))
        ours.shutdown(socket.SHUT_WR)
        assert child.wait(60) == 0
    return told


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every shape's file and what llama.cpp says of it, from one child."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = {name: build(folder / f"{name}.gguf", shape) for name, shape in SHAPES.items()}
    told = ask(*(question(path) for path in paths.values()))
    return {name: (paths[name], answer) for name, answer in zip(paths, told, strict=True)}


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_exact(name: str, answers: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    path, answer = answers[name]
    assert estimate(BACKENDS["gguf"].describe(path, {}), PLANS[0]).host.weights == answer["weights"]


@pytest.mark.parametrize("name", SHAPES)
def test_caches_are_exact(name: str, answers: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    path, answer = answers[name]
    header = BACKENDS["gguf"].describe(path, {})
    for plan, told in zip(PLANS, answer["plans"], strict=True):
        n_lines = 2 if SHAPES[name].window else 1
        assert abs(estimate(header, plan).host.kv - told["cache"]) <= n_lines * ROUNDED, plan


@pytest.mark.parametrize("name", SHAPES)
def test_compute_buffers_are_fitted_from_above(name: str, answers: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    path, answer = answers[name]
    header = BACKENDS["gguf"].describe(path, {})
    for plan, told in zip(PLANS, answer["plans"], strict=True):
        reported = sum(told["compute"].values()) + sum(told["output"].values())
        most = 1.4 if "f32" in plan.kv_type else 1.2
        assert reported <= estimate(header, plan).host.compute <= most * reported + 2 * MIB, plan


def test_windowed_layers_hold_the_window_and_one_batch(tmp_path: Path) -> None:
    path = build(tmp_path / "gemma2.gguf", SHAPES["gemma2"])
    plan = plan_of(32768, 2, "f16", 0, "cpu")
    per_cell = 2 * 2 * 32 * 2  # K and V, two heads of 32 values, two bytes

    assert estimate(BACKENDS["gguf"].describe(path, {}), plan).host.kv == 3 * per_cell * 2 * (32768 + 1024 + 512)


def test_a_model_that_llama_cpp_refuses_does_not_end_the_child(tmp_path: Path, canary_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    refused, told = ask(question(broken), question(canary_path, PLANS[:1]))
    assert refused["error"]
    assert told["plans"][0]["cache"] > 0


@pytest.mark.parametrize("shape", [LLAMA, replace(LLAMA, kind="Q4_0", n_embd=512, n_ff=1024), SHAPES["gemma3"]])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q8_0/q4_0"])
def test_the_real_load_reports_what_the_dry_one_promised(tmp_path: Path, shape: Shape, kv_type: KvTypes) -> None:
    path = build(tmp_path / "m.gguf", shape)
    (dry,) = ask(question(path, [plan_of(2048, 2, kv_type, 0, "cpu")]))
    spec = spec_of(
        name="m", backend="gguf", path=str(path), context=2048, parallel=2, kv_type=kv_type, device="cpu", threads=1
    )

    engine = load(spec, lambda _: None)
    try:
        parts = engine.ready().parts
    finally:
        engine.close()

    (plan,) = dry["plans"]
    assert parts["weights"] == dry["weights"]
    assert parts["kv"] == plan["cache"]
    assert parts["compute"] == sum(plan["compute"].values()) + sum(plan["output"].values())


def test_buffers_on_a_card_are_told_apart_and_the_rest_is_runtime() -> None:
    log = LibraryLog(
        lines=[
            "load_tensors:   CPU_Mapped model buffer size =   100.00 MiB",
            "load_tensors:        CUDA0 model buffer size =  4000.00 MiB",
            "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB",
            "llama_context:  CUDA_Host  output buffer size =     0.98 MiB",
            "sched_reserve:      CUDA0 compute buffer size =   256.00 MiB",
            "sched_reserve:  CUDA_Host compute buffer size =    16.00 MiB",
        ]
    )
    parts = parts_on_card(log, 11_000 * MIB, 5_900 * MIB)
    assert parts == {"weights": 4000 * MIB, "kv": 512 * MIB, "compute": 256 * MIB, "runtime": 332 * MIB}
    assert parts_on_card(log, 11_000 * MIB, None) is None


@pytest.mark.parametrize("order", ["CPU_REPACK", "AMX"])
def test_weights_copied_into_the_processors_order_are_told_from_those_of_the_file(order: str) -> None:
    log = LibraryLog(
        lines=[
            "load_tensors:   CPU_Mapped model buffer size =    40.00 MiB",
            f"load_tensors:          {order} model buffer size =    20.25 MiB",
            f"sched_reserve:          {order} compute buffer size =     3.00 MiB",
        ]
    )
    assert log.repacked_bytes() == 81 * MIB // 4


def test_whole_batch_of_warming_up_leaves_nothing_behind(canary_path: Path) -> None:
    log = LibraryLog()
    model = Model(canary_path, gpu_layers=0, log=log)
    context = Context(model, context=256, parallel=2, kv_type="f16", max_batch=512, n_threads=1, log=log)
    try:
        context.warm_up(512)
        assert context.cells_per_sequence == 256
        context.tokens[0] = context.positions[0] = context.sequences[0] = 0
        assert context.decode(1) == 0, "position 0 is free again"
    finally:
        context.close()
        model.close()
